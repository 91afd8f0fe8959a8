"""timeline.jsonl and the Chrome trace: what is in them, what a kill or a resume leaves, their size."""

import errno
import itertools
import json

import pytest

from fedray.observe import chrome, trace
from fedray.runtime.observed import Observed, Span

START = 1_800_000_000.0


def seen(number, hosts=3, compute_s=0.2, groups=None):
    """Return a made-up round of a second, 1.5 s after the one before."""
    began = START + 1.5 * number
    spans = []
    for host in range(hosts):
        name, at = f"pack{host}", began + 0.05
        sites = groups[host] if groups else tuple(f"h{host}{site}" for site in range(4))
        spans += [Span(name, "downlink", at, at + 0.05, number, 1),
                  Span(name, "compute", at + 0.05, at + 0.05 + compute_s, number, 1, sites),
                  Span(name, "uplink", at + 0.05 + compute_s, at + 0.1 + compute_s, number, 1)]
    return Observed(began=began, ended=began + 1.0, spans=spans, clocks={"pack0": (0.002, 0.001)})


def written(folder, rounds, first=0, close=True, **settings):
    file = trace.TimelineFile(folder)
    file.start(first)
    for number in range(first, rounds):
        file.round(number, seen(number, **settings))
    if close:
        file.close()
    return file


def test_every_second_of_a_round_is_work_or_waiting(tmp_path):
    written(tmp_path, 4)
    sums = trace.load(tmp_path).sums["pack1"]
    assert sums["seconds"]["compute"] == pytest.approx(4 * 0.2)
    assert sum(sums["seconds"].values()) == pytest.approx(4 * 1.0)
    assert (sums["rounds"], sums["sites"]) == (4, 4)


def test_what_is_read_is_what_was_seen(tmp_path):
    written(tmp_path, 2)
    found = trace.load(tmp_path)
    spans = list(found.spans(found.lines[1]["spans"], 1))
    assert [(span.host, span.what, span.round) for span in spans[:3]] == [
        ("pack0", "downlink", 1), ("pack0", "compute", 1), ("pack0", "uplink", 1)]  # fmt: skip
    assert (spans[1].began, spans[1].ended) == pytest.approx((1600.0, 1800.0))
    assert spans[1].sites == ("h00", "h01", "h02", "h03")


def test_killed_run_leaves_a_file_that_is_read_and_gone_on_with(tmp_path):
    written(tmp_path, 5, close=False)
    with (tmp_path / trace.FILE).open("a") as file:
        file.write('{"round": 5, "at": [75')
    killed = trace.load(tmp_path)
    assert (len(killed.lines), killed.is_whole) == (5, False)
    assert trace.sums_of(killed)["pack0"]["seconds"]["compute"] == pytest.approx(1.0)
    written(tmp_path, 6, first=3)
    found = trace.load(tmp_path)
    assert ([line["round"] for line in found.lines], found.rounds) == ([0, 1, 2, 3, 4, 5], 6)
    assert found.sums["pack0"]["seconds"]["compute"] == pytest.approx(6 * 0.2)


def test_file_is_bounded_keeps_the_slowest_rounds_and_sums_all(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "MAX_CELLS", 6000)
    file = trace.TimelineFile(tmp_path)
    file.start(0)
    for number in range(2000):
        of_round = seen(number)
        slow = 5.0 if number == 777 else 1.0
        file.round(number, Observed(began=of_round.began, ended=of_round.began + slow, spans=of_round.spans))
        assert file.cells <= trace.MAX_CELLS
    file.close()
    found = trace.load(tmp_path)
    numbers = [line["round"] for line in found.lines]
    assert 777 in numbers and 40 < len(numbers) < 120 and found.stride == 32
    assert found.rounds == 2000
    assert found.sums["pack2"]["seconds"]["compute"] == pytest.approx(2000 * 0.2)


def test_names_of_sites_that_are_drawn_anew_each_round_are_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "MAX_CELLS", 6000)
    file = trace.TimelineFile(tmp_path)
    file.start(0)
    for number in range(300):
        groups = [tuple(f"h{number}x{host}x{site}" for site in range(20)) for host in range(3)]
        file.round(number, seen(number, groups=groups))
    file.close()
    found = trace.load(tmp_path)
    assert sum(map(len, found.groups.values())) < 6000
    last = found.lines[-1]
    assert all(span.sites[0].startswith(f"h{last['round']}x")
               for span in found.spans(last["spans"], last["round"]) if span.what == "compute")


def test_chrome_trace_has_a_process_a_host_and_time_without_gaps_or_overlaps(tmp_path):
    written(tmp_path, 3)
    told = json.loads(chrome.write(tmp_path).read_text())
    names = {event["pid"]: event["args"]["name"] for event in told["traceEvents"]
             if event["name"] == "process_name"}
    assert names == {0: "aggregator", 1: "pack0 · 4 sites", 2: "pack1 · 4 sites", 3: "pack2 · 4 sites"}
    mine = sorted((event["ts"], event["dur"]) for event in told["traceEvents"]
                  if event["ph"] == "X" and event["pid"] == 1 and event["args"]["round"] == 1)
    assert all(at + length == pytest.approx(next_at, abs=2)
               for (at, length), (next_at, _) in itertools.pairwise(mine))
    assert sum(length for _, length in mine) == pytest.approx(1e6, abs=10)
    assert told["otherData"]["clocks"]["pack0"].startswith("+2.00 ms ahead")


def test_sites_alone_in_a_host_of_several_have_tracks_of_their_own(tmp_path):
    groups = [("h00", "h01"), ("h10",), ("h20", "h21")]
    file = trace.TimelineFile(tmp_path)
    file.start(0)
    of_round = seen(0, groups=groups)
    alone = Span("pack0", "compute", of_round.began + 0.4, of_round.began + 0.5, 0, 1, ("h02",))
    file.round(0, Observed(began=of_round.began, ended=of_round.ended, spans=[*of_round.spans, alone]))
    file.close()
    events = json.loads(chrome.write(tmp_path).read_text())["traceEvents"]
    tracks = {(event["pid"], event["tid"]): event["args"]["name"] for event in events
              if event["name"] == "thread_name" and event["tid"]}
    assert tracks == {(1, 1): "h02"}  # pack1 is one site: its host's track is the site's
    assert next(event["args"]["name"] for event in events
                if event["name"] == "process_name" and event["pid"] == 2) == "pack1 · h10"


def test_run_without_a_timeline_has_no_trace(tmp_path):
    assert chrome.write(tmp_path) is None


def test_lines_that_cannot_be_read_are_left_out_and_said(tmp_path, caplog):
    written(tmp_path, 4)
    whole = (tmp_path / trace.FILE).read_text().splitlines()
    of_host = next(line for line in whole if '"name": "pack1"' in line)
    torn = [line[:20] if line == of_host or '"round":2' in line else line for line in whole]
    (tmp_path / trace.FILE).write_text("\n".join(torn) + "\n")
    found = trace.load(tmp_path)
    assert [line["round"] for line in found.lines] == [0, 1, 3]
    assert "timeline.jsonl: 2 lines cannot be read and are left out" in caplog.text
    told = json.loads(chrome.write(tmp_path).read_text())
    assert {"host 1", "pack0 · 4 sites"} <= {event["args"].get("name") for event in told["traceEvents"]}


def full(monkeypatch):
    def refuse(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedray.observe.lines.append_whole", refuse)
    monkeypatch.setattr("fedray.observe.trace.os.replace", refuse)


def test_rounds_wait_while_the_disk_is_full(tmp_path, monkeypatch, caplog):
    file = written(tmp_path, 2, close=False)
    with monkeypatch.context() as patched:
        full(patched)
        file.round(2, seen(2, hosts=4))
        file.round(3, seen(3))
    assert len(trace.load(tmp_path).lines) == 2
    file.close()
    found = trace.load(tmp_path)
    assert ([line["round"] for line in found.lines], found.is_whole) == ([0, 1, 2, 3], True)
    assert "pack3" in found.hosts.values() and caplog.text == ""


def test_what_waits_is_bounded_and_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "MAX_CELLS", 6000)
    file = written(tmp_path, 50, close=False)
    with monkeypatch.context() as patched:
        full(patched)
        for number in range(50, 1000):
            file.round(number, seen(number))
            assert len(file._waiting) < 300
    file.close()
    found = trace.load(tmp_path)
    assert found.lines[-1]["round"] > 900 and found.rounds == 1000 and found.is_whole
    assert found.sums["pack2"]["seconds"]["compute"] == pytest.approx(1000 * 0.2)


def test_trace_that_finds_no_room_is_said_and_leaves_no_half_file(tmp_path, monkeypatch, caplog):
    written(tmp_path, 2)
    full(monkeypatch)
    assert chrome.write(tmp_path) is None
    assert "timeline.json cannot be written" in caplog.text and not list(tmp_path.glob("*.part"))
