"""Test hosts: several machines in several regions on this one, for what a real cluster has to survive.

Start reading at `hosts.py`; what runs is drawn in `wiring.py`. `why_not()` says why a machine cannot make
them: it takes root on Linux and a handful of programs.
"""

from experiments.testbed.hosts import Host, Hosts, why_not
from experiments.testbed.link import Link, Traffic, wide_area

__all__ = ["Host", "Hosts", "Link", "Traffic", "wide_area", "why_not"]
