"""What does hiding a vector cost, against the raw keystream of this processor and Flower's masks?

    python experiments/benchmarks/masking.py [--repeats 5] [--peer-python PATH] [--only rates,shamir,round]

CPU seconds of one thread. Excluded: encoding's input, the network, and the start of processes.

- `rates`: `mask_inplace` at 1 M and 25 M words of 32 bits and 10, 50, 200 neighbours: bytes a second over the
  raw keystream rate of the same process, interleaved (`ratio`, at least .55); per neighbour against Flower's
  masks in its own environment, before and after (`flwr_ratio`, at least 10 at 1 M and 8 at 25 M).
- `shamir`: 200 secrets of t = 134 shares, the weights included (at most 50 ms).
- `round`: a whole secure round of 200 sites and 1 M words against an active server, all real, one by one
  in this process: CPU of a site over all steps (at most 100 ms), and of the server with nobody lost (at most
  .2 s), and with 10 % lost before masking and 5 % before unmasking (at most 1.5 s). `hash` is what the server
  would pay besides to hold each vector against its signed SHA-256; `hub_s` is without it.

The last line is JSON; results/masking.json holds it.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environments
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers import machine

from fedray.secrecy import keystream, shamir
from fedray.secrecy.encoding import NUM_LANES, Encoding, encode
from fedray.secrecy.graph import Topology, topology
from fedray.secrecy.hub import Hub
from fedray.secrecy.hub_round import HubRound
from fedray.secrecy.keys import Identities, sha256
from fedray.secrecy.keystream import OneTimeKey
from fedray.secrecy.site import Site
from fedray.secrecy.site_round import SiteRound
from fedray.secrecy.terms import Terms

HERE = Path(__file__).resolve().parent
SIZES = (1_000_000, 25_000_000)
NEIGHBOURS = (10, 50, 200)
SITES, WORDS = 200, 1_000_000
BLOCK = 20  # vectors that the server adds at a time
RAW_BYTES = 256 * 2**20


def cpu_s(action: Callable[[], object]) -> float:
    """Return the CPU seconds of an action."""
    began = time.process_time()
    action()
    return time.process_time() - began


def shown(values: list[float]) -> dict[str, float]:
    """Return minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def raw_rate() -> float:
    """Return the best bytes a second of the keystream implementations, into one buffer in the cache."""
    out = bytearray(keystream.CHUNK_BYTES)
    num_chunks = RAW_BYTES // len(out)

    def rate(kind: Any) -> float:
        stream, plain = keystream.encryptor(os.urandom(32), kind), keystream.Source(kind).at(0, len(out))
        return (
            num_chunks
            * len(out)
            / cpu_s(lambda: [stream.update_into(plain, out) for _ in range(num_chunks)])
        )

    return max(rate("gcm"), rate("ctr"), rate("xts"))


def mask_s(words: Any, num_neighbours: int) -> float:
    """Return the CPU seconds of masking with fresh keys, half of them added and half subtracted."""
    keys = [OneTimeKey(os.urandom(32)) for _ in range(num_neighbours)]
    return cpu_s(lambda: keystream.mask_inplace(words, keys[::2], keys[1::2]))


def flwr_s(python: str, size: int) -> list[float]:
    """Return the CPU seconds of Flower's mask of one neighbour, in its own environment."""
    repeats = 5 if size > 5_000_000 else 40
    command = [python, str(HERE / "systems" / "flwr_mask.py"), str(size), str(repeats)]
    found: list[float] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return found


def rates(repeats: int, peer_python: str | None) -> list[dict[str, Any]]:
    """Return a line for each size and number of neighbours."""
    python = peer_python or environments.python_of("flwr")
    lines = []
    for size, num in itertools.product(SIZES, NEIGHBOURS):
        words = np.zeros(size, np.uint32)
        mask_s(words, num)
        flwr = flwr_s(python, size)
        pairs = [(raw_rate(), mask_s(words, num)) for _ in range(repeats)]
        flwr += flwr_s(python, size)
        per_neighbour = [seconds / num for _, seconds in pairs]
        lines.append(
            {
                "words": size,
                "neighbours": num,
                "ratio": shown(
                    [words.nbytes / mask / raw for (raw, _), mask in zip(pairs, per_neighbour, strict=True)]
                ),
                "raw_gb_s": shown([raw / 1e9 for raw, _ in pairs]),
                "neighbour_ms": shown([1e3 * seconds for seconds in per_neighbour]),
                "flwr_ms": shown([1e3 * seconds for seconds in flwr]),
                "flwr_ratio": statistics.median(flwr) / statistics.median(per_neighbour),
                "load": round(os.getloadavg()[0], 1),
            }
        )
        print(lines[-1], flush=True)
    return lines


def shamir_s(repeats: int) -> dict[str, float]:
    """Return CPU seconds to rebuild 200 secrets from 134 shares each."""
    places = range(1, 201)
    shares = [shamir.split(shamir.random_secret(), places, 134)[:134] for _ in range(200)]

    def rebuild() -> None:
        weights = shamir.lagrange(places[:134])
        for of_one in shares:
            shamir.rebuild(weights, of_one)

    return shown([cpu_s(rebuild) for _ in range(repeats)])


class Clock:
    """CPU seconds by who worked (a site's number, or "hub") and step."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[Any, str], float] = defaultdict(float)

    def run(self, who: Any, step: str, action: Callable[[], Any]) -> Any:
        """Return what an action returns."""
        began = time.process_time()
        try:
            return action()
        finally:
            self.seconds[who, step] += time.process_time() - began

    def sites(self, step: str | None = None) -> list[float]:
        """Return the seconds of each site, of a step or all."""
        found: dict[Any, float] = defaultdict(float)
        for (who, at), seconds in self.seconds.items():
            if who != "hub" and step in (None, at):
                found[who] += seconds
        return list(found.values())


def setup(clock: Clock, hub: Hub, sites: dict[int, Site]) -> Any:
    """Run the setup and return the members."""
    for n, site in sites.items():
        signed = clock.run(n, "A1", site.advertise)
        clock.run("hub", "A1", lambda signed=signed: hub.accept_advert(signed))
    directory = clock.run("hub", "A2", hub.directory)
    reveals = None
    if hub.terms.topology.degree is not None:
        for n, site in sites.items():
            signed = clock.run(n, "A2", lambda site=site: site.reveal(directory))
            clock.run("hub", "A2", lambda signed=signed: hub.accept_reveal(signed))
        reveals = clock.run("hub", "A2", hub.reveals)
    for n, site in sites.items():
        signed = clock.run(n, "A3", lambda site=site: site.deal(directory, reveals))
        clock.run("hub", "A3", lambda signed=signed: hub.accept_deal(signed))
    for n, site in sites.items():
        forward = clock.run("hub", "A3c", lambda n=n: hub.forward(n))
        signed = clock.run(n, "A3c", lambda site=site, forward=forward: site.accept(forward))
        clock.run("hub", "A3c", lambda signed=signed: hub.accept_opened(signed))
    return clock.run("hub", "A3c", hub.members)


def parties(graph: Topology) -> tuple[Hub, dict[int, Site]]:
    """Return the server and the sites before their first step."""
    own = [Ed25519PrivateKey.generate() for _ in range(SITES)]
    roster = [key.public_key().public_bytes_raw() for key in own]
    terms = Terms(
        run_id="masking",
        cohort=tuple(f"h{n:04d}" for n in range(SITES)),
        num_words=WORDS,
        encoding=Encoding(num_sites=SITES, bound=1.0),
        topology=graph,
    )
    sites = {n: Site(terms, n, identities=Identities(roster, own[n])) for n in range(SITES)}
    return Hub(terms, Identities(roster)), sites


def masked(
    clock: Clock, hub_round: HubRound, rounds: dict[int, SiteRound], encoding: Encoding
) -> tuple[Any, Any]:
    """Let the sites encode and mask, the server take in and add; return the masked and the plain total."""
    x = np.random.default_rng(0).normal(0, 0.1, (1, WORDS - NUM_LANES)).astype(np.float32)
    total, plain, block = np.zeros(WORDS, np.uint32), np.zeros(WORDS, np.uint32), []
    for n, site_round in rounds.items():
        row = clock.run(n, "encode", lambda: encode(x, np.ones(1), encoding))[0]
        plain += row
        words, signed = clock.run(n, "A4", lambda site_round=site_round, row=row: site_round.mask(row))
        clock.run("hub", "A4", lambda signed=signed: hub_round.accept_masked(signed))
        clock.run("hub", "hash", lambda words=words: sha256(words.data))
        site_round._words = None  # a site's own memory; 200 of them would fill this machine
        block.append(words)
        if len(block) == BLOCK or n == max(rounds):
            clock.run("hub", "add", lambda block=block: keystream.add_rows(total, block))
            block = []
    return total, plain


def unmasked(clock: Clock, hub_round: HubRound, rounds: dict[int, SiteRound], num_lost: int) -> None:
    """Let the sites agree on the survivors and open shares, the first `num_lost` of them no more."""
    survivors = clock.run("hub", "A5", hub_round.survivors)
    for n in survivors.sites:
        signed = clock.run(n, "A6", lambda n=n: rounds[n].confirm(survivors))
        clock.run("hub", "A6", lambda signed=signed: hub_round.accept_confirm(signed))
    for n in survivors.sites[num_lost:]:
        confirms = clock.run("hub", "A6", lambda n=n: hub_round.confirmations(n))
        signed = clock.run(n, "A7", lambda n=n, confirms=confirms: rounds[n].unmask(survivors, confirms))
        clock.run("hub", "A7", lambda signed=signed: hub_round.accept_unmask(signed))


def whole_round(graph: Topology, num_before: int, num_after: int) -> Clock:
    """Run a round in which sites are lost before masking and before unmasking, and check its sum."""
    clock = Clock()
    hub, sites = parties(graph)
    members = setup(clock, hub, sites)
    hub_round = clock.run("hub", "A4", lambda: hub.round(0, b"model"))
    rounds = {
        n: clock.run(n, "A4", lambda n=n: sites[n].round(members, 0, b"model"))
        for n in range(num_before, SITES)
    }
    total, plain = masked(clock, hub_round, rounds, hub.terms.encoding)
    unmasked(clock, hub_round, rounds, num_after)
    clock.run("hub", "result", lambda: hub_round.result(total))
    if (total != plain).any():
        raise SystemExit("the unmasked total is not the sum")
    return clock


def round_costs(graph: Topology, repeats: int, lost: tuple[int, int]) -> dict[str, Any]:
    """Return the CPU of a site and of the server over some rounds."""
    clocks = [whole_round(graph, *lost) for _ in range(repeats)]
    hub = [{step: spent for (who, step), spent in clock.seconds.items() if who == "hub"} for clock in clocks]
    steps = sorted({step for clock in clocks for who, step in clock.seconds if who != "hub"})
    line = {
        "degree": graph.degree,
        "threshold": graph.threshold,
        "lost": lost,
        "site_ms": shown([1e3 * one for clock in clocks for one in clock.sites()]),
        "site_step_ms": {
            step: 1e3 * statistics.median(one for clock in clocks for one in clock.sites(step))
            for step in steps
        },
        "hub_s": shown([sum(spent for step, spent in one.items() if step != "hash") for one in hub]),
        "hub_step_s": {step: statistics.median(one[step] for one in hub) for step in sorted(hub[0])},
    }
    print(line, flush=True)
    return line


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-python", help="interpreter with flwr 1.41, else one is made")
    parser.add_argument("--only", default="rates,shamir,round")
    given = parser.parse_args()
    results = HERE / "results" / "masking.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    print(machine(), "keystream:", keystream.fastest(), flush=True)
    if "rates" in given.only:
        found["rates"] = rates(given.repeats, given.peer_python)
    if "shamir" in given.only:
        found["shamir_200_secrets_s"] = shamir_s(given.repeats)
    if "round" in given.only:
        full = Topology(None, 2 * SITES // 3 + 1)
        found["rounds"] = [
            round_costs(graph, given.repeats, lost)
            for graph in (topology(SITES, "active"), full)
            for lost in ((0, 0), (20, 10))
        ]
    found["machine"] = machine()
    results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
