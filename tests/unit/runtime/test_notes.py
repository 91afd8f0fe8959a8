"""What a host says in the log of a run, and the file in which it keeps the rest to itself."""

import logging
import stat

import pytest

import fedray as fr
from fedray.runtime import notes
from fedray.runtime.host import StageCall
from fedray.runtime.notes import NoteHandler, Tracebacks
from fedray.runtime.observed import Observed
from tests.unit.runtime.test_timeline import Keeps
from tests.unit.runtime.toy import INIT, Breaks, ToyLocal, sites

SECRET = "a patient's name could stand here"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(notes.FOLDER, str(tmp_path / "tracebacks"))
    return tmp_path / "tracebacks"


def call(round=2):
    return StageCall(run="r", plan="p", seed=0, round=round, attempt=0, stage=1, cohort=("h01",))


def raised(message=SECRET):
    try:
        raise KeyError(message)
    except KeyError as error:
        return error


def written(host):
    tracebacks = Tracebacks("run", host)
    tracebacks.write(raised(), call())
    return tracebacks.take()


def train(name):
    told = Keeps()
    with fr.simulate(sites()) as federation:
        federation.run_name = name
        local = Breaks(ToyLocal(), ("h03", "h07"), 1, "raise")
        fr.fit(fr.algorithms.fedavg(local), federation, init=INIT, rounds=3, tracker=told)
    return [note for record in told.records for note in record.observed.notes]


def test_traceback_of_a_site_stays_in_a_file_of_its_user_and_the_log_names_it(folder):
    (note,) = train("20261127-icu")
    assert (note.level, note.host, note.round, note.stage) == ("ERROR", "pack0", 1, 1)
    assert (note.kind, note.traceback) == ("RuntimeError", "20261127-icu-pack0.txt")
    assert SECRET not in str(note)
    file = folder / note.traceback
    assert SECRET in file.read_text() and "toy.py" in file.read_text()
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (0o600, 0o700)


def test_run_without_a_directory_writes_no_traceback(folder):
    assert train("") == []
    assert not folder.exists()


def test_few_tracebacks_of_a_host_are_written(folder):
    tracebacks = Tracebacks("run", "pack0")
    for round in range(30):
        tracebacks.write(raised(), call(round))
    assert [note.round for note in tracebacks.take()] == list(range(notes.MAX_WRITTEN))
    assert tracebacks.take() == ()
    assert (folder / "run-pack0.txt").read_text().count("Traceback") == notes.MAX_WRITTEN


def test_name_of_a_host_cannot_lead_out_of_the_folder(folder):
    (note,) = written("../../eu.pack0")
    assert note.traceback == "run-.._.._eu.pack0.txt"
    assert [file.name for file in folder.iterdir()] == [note.traceback]


def test_folder_that_is_a_link_is_not_written_to(tmp_path, folder):
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    (note,) = written("pack0")
    assert note.traceback == "" and "could not be written" in note.message
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.fixture
def handler():
    logger = logging.getLogger("fedray")
    before = logger.level
    found = NoteHandler("pack0").attach()
    yield found
    logger.removeHandler(found)
    logger.setLevel(before)


def test_lines_of_fedray_are_collected_with_the_class_of_an_exception_and_nothing_of_others(handler):
    logging.getLogger("fedray.learn").info("clipped %d rows", 3, extra={"round": 4, "site": "h01"})
    logging.getLogger("fedray.learn").error("it broke", exc_info=raised())
    logging.getLogger("somebody").error(SECRET)
    first, second = handler.take()
    assert (first.level, first.message, first.round, first.site) == ("INFO", "clipped 3 rows", 4, "h01")
    assert (second.message, second.kind) == ("it broke", "KeyError")
    assert SECRET not in str((first, second)) and handler.take() == ()


def test_lines_of_the_aggregators_process_go_with_what_it_returns(handler):
    handler.host = "aggregator"
    logging.getLogger("fedray.passes").warning("refused")
    assert handler.onto({"rows": 3}) == {"rows": 3}
    (note,) = handler.onto(Observed()).notes
    assert (note.message, note.source) == ("refused", "aggregator")
