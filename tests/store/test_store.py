"""The run store keeps every file whole, every number exact, and says what is wrong with it."""

import math
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

from gnexp.store.files import write_whole
from gnexp.store.run import Run
from gnexp.store.run_files import TABLES
from gnexp.store.study import load_study, studies


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "main" / "gn-b2")


def metrics_row(seed=0, epoch=1, **changes):
    row = {"seed": seed, "epoch": epoch, "examples_seen": 5120 * epoch, "lr": 0.1}
    row |= {"train_loss": 1 / 3, "train_acc": 0.1 + 0.2, "test_loss": 2.5, "test_acc": 0.4}
    return {**row, "time_s": 1e-7, **changes}


# A row of every table, each number another.
ROWS = {
    name: {column: kind(number + 1) for number, (column, kind) in enumerate(table.columns.items())}
    for name, table in TABLES.items()
}


def test_a_file_is_synced_then_renamed_and_an_error_leaves_the_old_one_alone(tmp_path, monkeypatch):
    calls, path = [], tmp_path / "result.json"
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_whole(path, "old")
    assert calls == ["fsync", "replace"]

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new, but the disk is full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_writer_killed_at_any_instant_leaves_a_readable_table(tmp_path):
    code = (
        "import sys; from gnexp.store.run import Run; sys.path.insert(0, sys.argv[2])\n"
        "import test_store\n"
        "run, epoch = Run.create(sys.argv[1]), 0\n"
        "while True:\n"
        "    epoch += 1; run.add_rows('metrics.csv', [test_store.metrics_row(epoch=epoch)])\n"
        "    print(epoch, flush=True)\n"
    )
    folder, here = tmp_path / "run", os.path.dirname(__file__)
    for _ in range(2):
        command = [sys.executable, "-c", code, str(folder), here]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            written = [int(process.stdout.readline()) for _ in range(20)]
            process.kill()
        rows = Run(folder).rows("metrics.csv")
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) >= written[-1]


def test_every_number_comes_back_as_exactly_itself(run):
    rng = np.random.default_rng(0)
    values = [*(10.0 ** rng.uniform(-300, 300, 50)), math.inf, -0.0, 5e-324, 0.1 + 0.2]
    run.add_rows("metrics.csv", (metrics_row(epoch=i, test_loss=v) for i, v in enumerate(values)))
    assert [row["test_loss"] for row in run.rows("metrics.csv")] == values
    run.add_rows("metrics.csv", [metrics_row(epoch=99, test_loss=math.nan, lr=None)])
    assert math.isnan(run.rows("metrics.csv")[-1]["test_loss"])
    assert math.isnan(run.rows("metrics.csv")[-1]["lr"])


def test_rows_are_sorted_and_equal_rows_are_equal_bytes_in_whatever_order_they_come(tmp_path):
    rows = [metrics_row(seed, epoch) for seed in (10, 2) for epoch in (3, 1, 2)]
    a, b = Run.create(tmp_path / "a"), Run.create(tmp_path / "b")
    a.add_rows("metrics.csv", rows)
    for row in reversed(rows):
        b.add_rows("metrics.csv", [dict(reversed(row.items()))])
    assert (a.folder / "metrics.csv").read_bytes() == (b.folder / "metrics.csv").read_bytes()
    order = [(row["seed"], row["epoch"]) for row in a.rows("metrics.csv")]
    assert order == [(2, 1), (2, 2), (2, 3), (10, 1), (10, 2), (10, 3)]


def test_a_row_written_again_replaces_the_one_of_the_same_key_and_no_other(run):
    for name, row in ROWS.items():
        key, (*_, last) = TABLES[name].key, row
        others = [{**row, column: key[column](9)} for column in key]
        run.add_rows(name, [row, *others])
        run.add_rows(name, [{**row, last: 0.5}])
        stored = run.rows(name)
        assert len(stored) == 1 + len(key)
        assert [each[last] for each in stored if all(each[c] == row[c] for c in key)] == [0.5]
        assert all(other in stored for other in others)


def test_a_row_with_a_missing_or_unknown_column_is_refused_by_name(run):
    row = metrics_row()
    del row["test_acc"]
    with pytest.raises(ValueError, match=r"metrics\.csv.*test_acc"):
        run.add_rows("metrics.csv", [row])
    with pytest.raises(ValueError, match="speed"):
        run.add_rows("metrics.csv", [metrics_row(speed=3)])
    assert run.rows("metrics.csv") == []


def test_the_config_comes_back_with_its_types_and_order(run):
    config = {"norm": {"name": "gn", "eps": 1e-05}, "groups": None, "lr": 1e-05, "seeds": [0, 1]}
    config |= {"data": {"title": "yes: 1e3 # no"}, "zero_gamma": False, "batch": np.int64(2)}
    run.write_config(config)
    assert run.config() == config
    assert list(run.config()) == list(config)
    assert isinstance(run.config()["norm"]["eps"], float)


def test_the_status_of_each_seed_is_kept_and_an_unknown_one_refused(run):
    run.set_status(10, "running")
    run.set_status(2, "infeasible", "out of memory")
    run.set_status(10, "complete")
    assert run.statuses() == {
        2: {"status": "infeasible", "why": "out of memory"},
        10: {"status": "complete", "why": ""},
    }
    with pytest.raises(ValueError, match=r"'done'.*complete"):
        run.set_status(0, "done")


def test_results_are_added_seed_by_seed_and_list_the_finished_ones(run):
    assert (run.result(), run.finished_seeds()) == ({}, [])
    run.add_result(10, {"status": "complete", "test_acc": 0.5}, run=run.name, config={"batch": 2})
    run.add_result(2, {"status": "diverged", "test_acc": math.nan})
    assert run.finished_seeds() == [2, 10]
    result = run.result()
    assert result["config"] == {"batch": 2}
    assert list(result["seeds"]) == ["2", "10"]
    assert result["seeds"]["2"]["test_acc"] is None


def test_dropping_a_seed_leaves_the_others_untouched(run):
    for seed in (0, 1):
        for name, row in ROWS.items():
            run.add_rows(name, [{**row, "seed": seed}])
        run.add_logits(seed, np.full((3, 2), seed))
        run.add_result(seed, {"test_acc": 0.5})
    run.drop_seed(0)
    for name in ROWS:
        assert [row["seed"] for row in run.rows(name)] == [1]
    assert run.finished_seeds() == [1]
    assert list(run.logits()) == [1]


def test_logits_are_float16_by_seed_and_need_no_pickle(run):
    rng = np.random.default_rng(0)
    logits_NC = rng.normal(size=(7, 3))
    run.add_logits(3, logits_NC)
    run.add_logits(1, -logits_NC)
    with np.load(run.folder / "logits.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["seed_1", "seed_3"]
        assert arrays["seed_3"].dtype == np.float16
        np.testing.assert_array_equal(arrays["seed_3"], logits_NC.astype(np.float16))
    np.testing.assert_array_equal(run.logits()[1], -run.logits()[3])


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("metrics.csv", b"seed,epoch\n0,1\n", None),
        ("metrics.csv", ",".join(metrics_row()).encode() + b"\n0,1,2", None),
        ("gradients.csv", b"\xff\xfe", None),
        ("covariance.csv", b"seed,epoch,parameters,n,trace\n0,0,all,many,1.0\n", None),
        ("result.json", b'{"seeds": {"0": ', Run.result),
        ("result.json", b'{"seeds": {"first": {}}}', Run.result),
        ("result.json", b"[]", Run.result),
        ("status.json", b'{"seeds": [1]}', Run.statuses),
        ("config.yaml", b"a: [1", Run.config),
        ("logits.npz", b"PK not a zip", Run.logits),
    ],
)
def test_a_corrupt_file_is_named(run, name, content, read):
    (run.folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is corrupt"):
        read(run) if read else run.rows(name)


def test_only_one_process_at_a_time_holds_a_seed_and_others_hold_other_seeds(run):
    with run.lock(1) as first:
        assert first
        with Run(run.folder).lock(1) as second, Run(run.folder).lock(2) as other:
            assert (bool(second), bool(other)) == (False, True)
    with run.lock(1) as again:
        assert again


def test_a_write_clears_what_a_killed_writer_left(run):
    (run.folder / ".metrics.csv.123.tmp").write_text("half a fi")
    run.set_status(0, "running")
    assert not list(run.folder.glob(".*.tmp"))


def _add_rows(folder, seed, count):
    for epoch in range(count):
        Run(folder).add_result(seed * 1000 + epoch, {"status": "complete"})


def test_processes_that_write_one_run_at_once_lose_nothing(run):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_rows, args=(run.folder, seed, 20)) for seed in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(run.finished_seeds()) == 40


def test_the_processes_of_one_call_leave_one_provenance_and_another_call_its_own(run):
    for started in ("9:00", "9:00", "10:00"):
        run.write_provenance({"command": "gnexp train", "started": started})
    assert run.provenance()["started"] == "10:00"
    assert [call["started"] for call in run.provenance()["earlier"]] == ["9:00"]


def test_a_study_holds_finished_and_unfinished_runs_and_ignores_what_is_neither(tmp_path):
    study = tmp_path / "main"
    done, begun = Run.create(study / "a"), Run.create(study / "b")
    done.set_status(0, "running")
    done.add_result(0, {"status": "complete", "test_acc": 0.5}, config={"batch": 2, "seeds": 2})
    begun.write_config({"batch": 4, "seeds": [7]})
    begun.set_status(7, "failed", "boom")
    begun.add_rows("metrics.csv", [metrics_row(7)])
    for neither in ("report", "notes"):
        (study / neither).mkdir()
    (study / "report" / "status.json").write_text("not a run")
    (study / "notes.txt").write_text("mine")
    first, second = load_study(study).runs
    assert [state["status"] for state in first.statuses.values()] == ["complete", "missing"]
    assert first.numbers(0)["test_acc"] == 0.5
    assert first.metrics.empty
    assert second.config == {"batch": 4, "seeds": [7]}
    assert second.statuses == {7: {"status": "failed", "why": "boom"}}
    assert second.metrics["test_acc"].tolist() == [0.4]


def test_a_missing_study_is_named_with_those_there_are_nearest_first(tmp_path):
    for name in ("groups", "main", "mainly", ".hidden", "reference"):
        Run.create(tmp_path / name / "run").set_status(0, "running")
    (tmp_path / "no-study").mkdir()
    assert studies(tmp_path) == ["groups", "main", "mainly"]
    with pytest.raises(ValueError, match=r"study=mian does not exist.*: main, mainly, groups$"):
        load_study(tmp_path / "mian")
    with pytest.raises(ValueError, match="study=no-study holds no run"):
        load_study(tmp_path / "no-study")
    with pytest.raises(ValueError, match="holds no study yet"):
        load_study(tmp_path / "nowhere" / "main")


def test_the_store_imports_neither_torch_nor_the_slow_libraries():
    code = (
        "import sys, gnexp.store.run\n"
        "slow = ('torch', 'pandas', 'scipy', 'matplotlib', 'numpy')\n"
        "print([m for m in slow if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
