"""TensorBoard and W&B show what the store holds: no step twice, none missing, whatever ended it."""

import importlib.util
import json
import math
import socket
import struct
import subprocess
import sys
from collections import Counter

import pytest
from study_reports import SVG, build_report

from gnexp.analysis.study_analysis import study_analysis
from gnexp.config.rules import logger
from gnexp.report.fingerprint import fingerprint, is_fresh
from gnexp.runner import loggers
from gnexp.runner.loggers import export, export_all
from gnexp.runner.repair import repair_run
from gnexp.store.run import Run
from gnexp.store.study import load_study

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="gnexp[tensorboard] is not installed"
)
needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="gnexp[wandb] is not installed"
)
SMALL = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=20", "batch=10")
NAMES = {
    "train/loss": "train_loss",
    "train/acc": "train_acc",
    "test/loss": "test_loss",
    "test/acc": "test_acc",
    "lr": "lr",
    "examples_seen": "examples_seen",
}


def metrics(seed, epochs, shift=0.0):
    return [
        {"seed": seed, "epoch": e, "examples_seen": 60 * e, "lr": 0.1 / e, "train_loss": 2.3 / e}
        | {"train_acc": 0.1 * e + shift, "test_loss": 2.5 / e, "test_acc": 0.08 * e, "time_s": 1.5}
        for e in range(1, epochs + 1)
    ]


def gradients(seed, epoch, batch, kind):
    return {
        **{"seed": seed, "epoch": epoch, "at_batch": batch, "parameters": kind, "k": 64},
        **{"noise": 5.0 / batch, "noise_lo": 1.0, "noise_hi": 9.0, "signal": 0.25},
        **{"signal_lo": 0.1, "signal_hi": 0.4, "relative_noise": 2.0, "noise_scale": 20.0},
        "weight_norm": 3.0,
    }


@pytest.fixture
def run(tmp_path):
    """A run of two seeds: seed 0 is complete, seed 1 stands after two epochs of four."""
    run = Run.create(tmp_path / "main" / "bn-b10-tiny-01234567")
    config = {"norm": {"name": "bn"}, "groups": None, "batch": 10, "update_batch": 10, "lr": 0.1}
    config |= {"model": {"name": "tiny", "width": 8}, "data": {"name": "shapes10"}, "epochs": 4}
    run.write_config({**config, "seeds": [0, 1], "device": "cpu", "study": "main"})
    run.write_provenance({"started": "2026-11-22T16:00:00+00:00", "command": "gnexp train"})
    run.add_rows("metrics.csv", [*metrics(0, 4), *metrics(1, 2)])
    rows = (gradients(0, e, b, k) for e in (0, 4) for b in (2, 10, 20) for k in ("all", "x"))
    run.add_rows("gradients.csv", rows)
    run.add_result(0, {"status": "complete", "test_acc": 0.32}, run=run.name, config=config)
    run.set_status(0, "complete")
    run.set_status(1, "running")
    return run


def scalars(folder):
    """Return {tag: [(step, value), ...]} as TensorBoard's own reader sees a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in tags}


def events_of(run, seed):
    return run.folder / "tensorboard" / f"seed-{seed}"


def check_against_store(run):
    """Assert that the event files hold the rows of metrics.csv, all of them, each once."""
    for seed in {row["seed"] for row in run.rows("metrics.csv")}:
        seen = scalars(events_of(run, seed))
        rows = [row for row in run.rows("metrics.csv") if row["seed"] == seed]
        for tag, column in NAMES.items():
            assert [step for step, _ in seen[tag]] == [row["epoch"] for row in rows], tag
            wanted = [row[column] for row in rows]
            got = [value for _, value in seen[tag]]
            assert got == pytest.approx(wanted, rel=1e-6, nan_ok=True)  # float32 in the file


@needs_tensorboard
def test_gradients_are_those_at_the_own_batch_size_and_layers_stay_in_the_table(run):
    export(run, "tensorboard")
    seen = scalars(events_of(run, 0))
    assert seen["gradient_noise/all"] == [(0, 0.5), (4, 0.5)]
    assert seen["gradient_signal/all"] == [(0, 0.25), (4, 0.25)]
    assert "gradient_noise/x" not in seen
    assert "gradient_noise/all" not in scalars(events_of(run, 1))


@needs_tensorboard
def test_what_a_validation_split_scored_is_not_called_test(run):
    result = run.result()
    result["config"]["data"]["validation"] = 0.1
    run.write_result(result)
    export(run, "tensorboard")
    assert {"val/acc", "val/loss"} <= set(scalars(events_of(run, 0)))
    assert not any(tag.startswith("test/") for tag in scalars(events_of(run, 0)))


@needs_tensorboard
def test_hyperparameters_are_what_can_change_the_numbers_and_seeds_share_a_group(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    export(run, "tensorboard")
    groups = set()
    for seed in (0, 1):
        reader = EventAccumulator(str(events_of(run, seed)))
        reader.Reload()
        content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        session = HParamsPluginData.FromString(content).session_start_info
        groups.add(session.group_name)
        told = {k: v.string_value or v.number_value for k, v in session.hparams.items()}
        assert told["norm.name"] == "bn"
        assert (told["batch"], told["lr"]) == (10, 0.1)
        assert not {"seeds", "device", "study", "groups"} & set(told)
    assert groups == {run.name}


@needs_tensorboard
def test_a_further_epoch_is_added_so_that_an_open_reader_sees_it(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    export(run, "tensorboard")
    reader = EventAccumulator(str(events_of(run, 1)))
    reader.Reload()
    run.add_rows("metrics.csv", metrics(1, 3))
    for _ in range(2):  # the second has nothing to add
        export(run, "tensorboard")
        reader.Reload()
        assert [event.step for event in reader.Scalars("train/loss")] == [1, 2, 3]
    check_against_store(run)


@needs_tensorboard
def test_an_event_file_that_is_not_what_it_should_be_is_written_again(run):
    export(run, "tensorboard")
    (file,) = events_of(run, 0).iterdir()
    file.rename(file.with_name("events.out.tfevents.000002.0123456789abcdef"))
    export(run, "tensorboard")
    assert [path.name for path in events_of(run, 0).iterdir()] == [file.name]
    check_against_store(run)


@needs_tensorboard
def test_a_training_that_went_back_and_gave_other_numbers_leaves_none_of_the_first(run):
    export(run, "tensorboard")
    run.drop_seed(1)
    run.add_rows("metrics.csv", metrics(1, 1, shift=0.5))
    export(run, "tensorboard")
    assert [step for step, _ in scalars(events_of(run, 1))["train/acc"]] == [1]
    check_against_store(run)


@needs_tensorboard
def test_a_loss_that_is_not_finite_is_shown_as_such(run):
    run.add_rows("metrics.csv", [{**metrics(1, 3)[2], "train_loss": math.nan}])
    export(run, "tensorboard")
    check_against_store(run)


@needs_tensorboard
def test_event_files_disturb_neither_the_report_nor_the_store(run):
    study = run.folder.parent
    build_report(study)
    export(run, "tensorboard")
    assert is_fresh(study / "report", fingerprint(study_analysis(load_study(study)), SVG))
    run.settle()
    assert repair_run(run, finished=True) == []
    assert [record.name for record in load_study(study).runs] == [run.name]


@needs_tensorboard
def test_training_with_a_logger_is_live_and_a_killed_one_ends_with_each_step_once(gnexp, workdir):
    words = ("train", *SMALL, "seeds=2", "epochs=3", "gradients=4", "workers=1")
    calls, follow = [], loggers.follow

    def killed(run, seed, logger):
        follow(run, seed, logger)
        calls.append({s: dict(scalars(f)) for s in (0, 1) if (f := events_of(run, s)).exists()})
        if len(calls) == 4:  # both seeds have two epochs, the second without its checkpoint
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gnexp.runner.trainer.follow", killed)
        assert gnexp(*words, "logger=tensorboard").code == 130
    assert [step for step, _ in calls[-1][1]["train/loss"]] == [1, 2]
    answer = gnexp(*words, "logger=tensorboard")
    assert answer.code == 0, answer.err
    assert "tensorboard --logdir results/main" in answer.out
    (folder,) = (workdir / "results/main").glob("*-b10-*")
    check_against_store(Run(folder))
    assert "logger" not in (folder / "config.yaml").read_text()
    for seed in (0, 1):
        steps = Counter(step for step, _ in scalars(events_of(Run(folder), seed))["test/acc"])
        assert steps == {1: 1, 2: 1, 3: 1}


@needs_tensorboard
def test_a_finished_study_is_exported_without_training_it_again(gnexp, workdir, run, tmp_path):
    for command in (("report",), ("report", "study=main")):
        answer = gnexp(*command, f"out={tmp_path}", "logger=[tensorboard]")
        assert answer.code == 0, answer.err
    assert f"tensorboard --logdir {tmp_path}/main" in answer.out
    check_against_store(run)


@needs_tensorboard
def test_a_run_that_cannot_be_exported_is_told_and_costs_no_other(run, tmp_path):
    other = Run.create(run.folder.parent / "gn-b10-tiny-89abcdef")
    other.add_rows("metrics.csv", metrics(0, 1))
    (run.folder / "tensorboard").write_text("in the way")
    failed = export_all([run.folder, other.folder], "tensorboard")
    assert [what for what, _ in failed] == [f"logger=tensorboard of {run.name}"]
    assert events_of(other, 0).is_dir()


@needs_tensorboard
def test_a_writer_that_fails_costs_no_training_and_is_told_once(gnexp, workdir, monkeypatch):
    error = ImportError("Descriptors\ncannot be")

    def write(*words):
        raise error

    monkeypatch.setitem(loggers.WRITERS, "tensorboard", write)
    words = ("-m", *SMALL, "norm=bn,gn", "epochs=2", "gradients=0", "workers=1")
    answer = gnexp("train", *words, "logger=tensorboard")
    for folder in (workdir / "results/main").glob("*-b10-*"):
        run = Run(folder)
        assert run.result()["seeds"]["0"]["status"] == "complete"
        assert [row["epoch"] for row in run.rows("metrics.csv")] == [1, 2]
    told = [line for line in answer.out.splitlines() if "tensorboard of" in line]
    assert len(told) == 1, answer.out
    assert told[0].startswith("failed: logger=tensorboard of bn-")
    assert told[0].endswith(f" and 1 more: {str(error).splitlines()[0]}")
    assert (answer.code, "trying halves" in answer.out) == (1, False)


@needs_wandb
def test_wandb_runs_are_written_offline_once_for_each_finished_seed(run):
    export(run, "wandb")
    (there,) = run.folder.glob("wandb/offline-run-*")
    assert there.name.endswith(f"{run.name}-seed-0")
    history = wandb_history(there)
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4]
    for tag, column in NAMES.items():
        wanted = [row[column] for row in run.rows("metrics.csv") if row["seed"] == 0]
        assert [row[tag] for row in history[1:]] == pytest.approx(wanted)
    export(run, "wandb")
    assert [*run.folder.glob("wandb/offline-run-*")] == [there]
    run.add_rows("metrics.csv", metrics(0, 4, shift=0.1))
    export(run, "wandb")
    (again,) = run.folder.glob("wandb/offline-run-*")
    assert wandb_history(again)[1]["train/acc"] == pytest.approx(0.2)


def wandb_history(folder):
    """Return the logged rows of an offline run: records of W&B's, framed as LevelDB's logs are."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    data, place, whole, rows = file.read_bytes(), 7, b"", []  # behind the head of the file
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # a block's rest is too short for another head
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a record in one piece, or its last piece
            record = wandb_internal_pb2.Record.FromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({i.key or "/".join(i.nested_key): i.value_json for i in items})
    return [{key: json.loads(value) for key, value in row.items()} for row in rows]


@needs_wandb
@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_wandb_offline_opens_no_connection(run):
    """In a process whose every socket but local ones is refused, and told of."""
    code = f"""
import socket, sys
def refuse(event, args):
    if event == "socket.connect" and args[0].family != socket.AF_UNIX: sys.exit("connect")
    if event == "socket.getaddrinfo": sys.exit("look-up")
sys.addaudithook(refuse)
from gnexp.runner.loggers import *
export(Run({str(run.folder)!r}), "wandb")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (there,) = run.folder.glob("wandb/offline-run-*")
    log = next(there.glob("logs/debug-core.log"), None)
    assert log is None or '"disable-analytics":true' in log.read_text()


def test_an_unknown_logger_is_named_with_the_nearest_valid_one(gnexp, workdir):
    for command in ("train", "report"):
        answer = gnexp(command, "logger=tensorbord")
        assert (answer.code, len(answer.err.splitlines())) == (2, 1)
        assert "logger=tensorbord is unknown; did you mean tensorboard?" in answer.err
    assert not (workdir / "results").exists()


def test_a_missing_package_is_named_before_any_work_starts(gnexp, workdir, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = "logger=wandb needs a package that is not installed: pip install 'gnexp[wandb]'"
    assert logger("logger", ["wandb"]) == sentence
    answer = gnexp("train", *SMALL, "logger=tensorboard")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "pip install 'gnexp[tensorboard]'" in answer.err
    assert not (workdir / "results").exists()


@needs_tensorboard
def test_a_writer_that_failed_for_a_while_leaves_no_gap_and_nothing_to_tell(
    gnexp, workdir, monkeypatch
):
    calls = []

    def write(*words):
        calls.append(words)
        if len(calls) == 1:
            raise OSError(28, "disk full")
        return loggers.write_events(*words)

    monkeypatch.setitem(loggers.WRITERS, "tensorboard", write)
    words = (*SMALL, "epochs=2", "gradients=0", "workers=1")
    answer = gnexp("train", *words, "logger=tensorboard")
    assert (answer.code, "disk full" in answer.out) == (0, False), answer.out
    (folder,) = (workdir / "results/main").glob("*-b10-*")
    check_against_store(Run(folder))
