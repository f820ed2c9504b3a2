"""Bytes that changed since they were written are named, and no number is made of them."""

import contextlib
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from written_run import RUN, write_run

from gnexp.cli import app
from gnexp.store import digests
from gnexp.store.integrity import lost_rows
from gnexp.store.lr_choices import LRChoice, record_choices
from gnexp.store.run import Run
from gnexp.store.study import load_study

STUDY = Path("results/main")
SMALL = ("config.yaml", "plan.json", "provenance.json", "status.json", "result.json")
SMALL += ("metrics.csv", "gradients.csv", "covariance.csv")
SMALL += ("shift.csv", "batches.csv", "classes.csv", "traceback-1.txt")
LARGE = ("checkpoint.pt", "logits.npz")
TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
TINY += ("epochs=2", "batch=10", "gradients=0", "norm=bn", "workers=1", "device=cpu")
SHIFT = ("shift.corruptions=[fog]", "shift.severities=[1,5]")


@pytest.fixture
def run(workdir):
    return write_run()


def alter(path):
    """Let one digit of a file be another, so that a text stays valid; other files lose a bit."""
    data = bytearray(path.read_bytes())
    places = [i for i in range(len(data)) if chr(data[i]) in "12345"]
    place = places[len(places) // 2]
    data[place] = data[place] + 1 if path.suffix != ".npz" else data[place] ^ 0x40
    path.write_bytes(data)


def test_every_file_has_the_digest_that_sha256sum_prints(run):
    stored = json.loads((RUN / "digests.json").read_text())
    for name in (*SMALL, *LARGE):
        assert stored[name] == hashlib.sha256((RUN / name).read_bytes()).hexdigest()
    *lines, last = (RUN / "digests.json").read_bytes().splitlines(keepends=True)
    assert hashlib.sha256(b"".join(lines)).hexdigest().encode() in last


@pytest.mark.parametrize("name", [*SMALL, "digests.json", *LARGE])
def test_a_changed_digit_is_named_in_one_sentence_by_whoever_reads_the_study(
    name, gnexp, run, monkeypatch
):
    # Drawing a report takes its time.
    monkeypatch.setattr("gnexp.report.study_report.build_report", lambda *args: {})
    assert gnexp("verify").code == 0
    alter(RUN / name)
    for command in ("verify",) if name in LARGE else ("status", "report", "verify"):
        answer = gnexp(command)
        assert answer.code == (command == "verify"), answer
        lines = answer.out.splitlines()
        assert sum(f"{RUN / name} was changed since it was" in line for line in lines) == 1


def test_no_row_of_a_changed_table_is_used_and_none_is_written_beside(run):
    tables = [name for name in SMALL if name.endswith(".csv")]
    for name in tables:
        (row, _), path = run.rows(name), RUN / name
        alter(path)
        (record,) = load_study(STUDY).runs
        assert record.rows(name) == []
        with pytest.raises(ValueError, match="was changed since it was written"):
            run.add_rows(name, [{**row, "seed": 2}])


def test_a_process_killed_between_a_table_and_its_digest_has_changed_nothing(run):
    row = {**run.rows("metrics.csv")[0], "epoch": 2}
    killed = 0
    for instant in range(1, 20):
        shutil.copytree(RUN, f"results/copy{instant}/gn-b2")
        copy = Run(f"results/copy{instant}/gn-b2")
        pid = os.fork()
        if pid == 0:
            kill_before_replacing(instant)
            copy.add_rows("metrics.csv", [row])
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert load_study(copy.folder.parent).corrupt_files == [], f"killed before rename {instant}"
        assert len(copy.rows("metrics.csv")) in (2, 3)
        copy.settle()
        digests = json.loads((copy.folder / "digests.json").read_text())
        metrics = (copy.folder / "metrics.csv").read_bytes()
        assert digests["metrics.csv"] == hashlib.sha256(metrics).hexdigest()
        killed += ended != 0
        if not ended:
            break
    assert killed >= 3  # the old and the new digest, the table, the new digest


def kill_before_replacing(number):
    replace, count = os.replace, [0]

    def replace_or_die(*paths):
        count[0] += 1
        if count[0] == number:
            os._exit(9)
        replace(*paths)

    os.replace = replace_or_die


def test_a_reader_beside_a_writer_takes_nothing_for_a_change(run):
    row, over = run.rows("metrics.csv")[0], threading.Event()

    def write():
        for epoch in range(50):
            Run(RUN).add_rows("metrics.csv", [{**row, "epoch": 2, "lr": epoch / 7}])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    looks = 0
    while not over.is_set():
        assert load_study(STUDY).corrupt_files == []
        looks += 1
    writer.join()
    assert looks > 5


def test_line_ends_that_git_has_changed_are_no_change(gnexp, run):
    before = load_study(STUDY).runs[0]
    tables = {name: before.rows(name) for name in SMALL if name.endswith(".csv")}
    for name in (*SMALL, "digests.json"):
        path = RUN / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    after = load_study(STUDY).runs[0]
    assert after.corrupt_files == []
    assert {name: after.rows(name) for name in tables} == tables
    assert gnexp("verify").code == 0


def test_a_file_that_is_gone_is_named_until_it_is_written_again(gnexp, run):
    rows = run.rows("shift.csv")
    (RUN / "shift.csv").unlink()
    answer = gnexp("verify")
    assert answer.code == 1
    assert f"{RUN / 'shift.csv'} is gone: 'gnexp measure study=main what=[shift]'" in answer.out
    assert f"corrupt: {RUN / 'shift.csv'} is gone" in gnexp("status").out
    run.add_rows("shift.csv", rows)
    assert gnexp("verify").code == 0


def test_files_without_a_digest_are_told_of_once_and_get_one_where_that_is_asked_for(gnexp, run):
    write_run(STUDY / "gn-b4")
    for folder in (RUN, STUDY / "gn-b4"):
        (folder / "digests.json").unlink()
    told = [line for line in gnexp("status").out.splitlines() if line.startswith("unknown: ")]
    assert len(told) == 1
    assert "26 files" in told[0]
    assert gnexp("verify").code == 0
    assert not (RUN / "digests.json").exists()
    (STUDY / "gn-b4" / "shift.csv").write_bytes(b"torn")
    assert gnexp("verify", "record=true").code == 1
    assert not (STUDY / "gn-b4" / "digests.json").exists(), "a corrupt run is not blessed"
    before = (RUN / "digests.json").read_bytes()
    alter(RUN / "metrics.csv")
    assert gnexp("verify", "record=true").code == 1
    assert (RUN / "digests.json").read_bytes() == before, "a digest that stands is kept"


def test_a_changed_record_of_chosen_rates_is_named_and_set_aside(gnexp, run):
    choice = LRChoice("gn-b2", 0.1, None, None, {0.1: "gn-b2"}, "best", {})
    assert record_choices(STUDY, {"cell": choice}) == []
    assert gnexp("verify").code == 0
    alter(STUDY / "tuning.json")
    for command in ("status", "verify"):
        assert f"{STUDY / 'tuning.json'} was changed since" in gnexp(command).out
    (sentence,) = record_choices(STUDY, {"cell": choice})
    assert "tuning.json.corrupt" in sentence
    assert gnexp("verify").code == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of a trained run, with shift measured."""
    with contextlib.chdir(tmp_path_factory.mktemp("trained")):
        assert app.main(["train", *TINY, *SHIFT, "measure=[shift]"]) == 0
        return Path.cwd()


@pytest.fixture
def copied(trained, workdir, no_report):
    """A copy of that run as the only one of results/main."""
    shutil.copytree(trained / "results", workdir / "results")
    (folder,) = (path.parent for path in STUDY.glob("*/status.json"))
    return folder


def test_rows_that_were_measured_and_lost_are_said_to_be_missing_until_they_are_there_again(
    gnexp, copied
):
    before = (copied / "shift.csv").read_bytes()
    alter(copied / "shift.csv")
    answer = gnexp("train", *TINY)
    assert answer.code == 0, answer.err
    assert f"{copied / 'shift.csv'} was changed since it was written: kept as shift.c" in answer.out
    lacks = f"{copied / 'shift.csv'} lacks 3 rows that shift.csv.corrupt holds"
    assert lacks in gnexp("status").out
    assert lacks in gnexp("verify").out
    assert gnexp("measure", "what=[shift]", "workers=1", "device=cpu", *SHIFT).code == 0
    assert (copied / "shift.csv").read_bytes() == before
    assert gnexp("verify").code == 0


def test_a_digit_of_a_seed_that_changed_makes_no_row_missing(tmp_path):
    rows = [{"seed": 0, "class": "ant"}, {"seed": 0, "class": "bee"}, {"seed": 1, "class": "ant"}]
    writer = digests.Writer(tmp_path)
    writer.write("classes.csv.corrupt", "seed,class\n0,ant\n1,bee\n1,ant\n")  # bee's was 0
    writer.close()
    assert not lost_rows(tmp_path, (0, 1), lambda table: rows)
    (line,) = lost_rows(tmp_path, (0, 1), lambda table: rows[:2])
    assert "classes.csv lacks 1 rows" in line


def test_a_changed_file_of_a_report_is_named_and_made_anew(gnexp, run):
    assert gnexp("report").code == 0
    path = STUDY / "report" / "accuracy.csv"
    before = path.read_bytes()
    alter(path)
    answer = gnexp("verify")
    assert answer.code == 1
    assert f"{path} was changed since it was made" in answer.out
    assert f"corrupt: {path} was changed since it was made" in gnexp("report").out
    assert path.read_bytes() == before
    assert gnexp("verify").code == 0


def test_changed_weights_are_neither_measured_nor_started_from(gnexp, copied):
    with open(copied / "checkpoint.pt", "r+b") as file:
        file.write(b"Q")  # the first byte of a header: no checksum of the archive covers it
    answer = gnexp("measure", "gradients_at=[5]", "device=cpu", "workers=1")
    assert answer.code == 1
    assert "checkpoint.pt was changed since it was written" in answer.out
    answer = gnexp("train", *TINY, f"init_from={copied}", "study=fine")
    assert answer.code == 2
    assert "checkpoint.pt was changed since it was written" in answer.err
