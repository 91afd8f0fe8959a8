"""The traced round: graph, trace, rewriting, verification and explanation. Start at `trace.py`."""
