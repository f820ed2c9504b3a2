"""A disk that is full: the reason in a sentence, nothing half, and the same command goes on later.

On a small file system in memory where one may be mounted; where not, under a limit on the size of
files, which needs no rights.
"""

import contextlib
import errno
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gnexp.runner.trainer import GroupTrainer
from gnexp.store import files
from gnexp.store.disk import disk_failure
from gnexp.store.run import Run

TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
TINY += ("batch=10", "gradients=4", "epochs=3", "norm=bn", "device=cpu")
WORDS = ("train", *TINY, "seeds=2", "workers=1", "out=disk")
STUDY = Path("disk/main")
HARNESS = Path(__file__).parents[2] / "scripts" / "kill_harness.py"


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("kill_harness_for_disks", HARNESS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def disk(workdir):
    """A disk of three megabytes, at `disk` in the working folder."""
    folder = workdir / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk):
    """Leave not a byte of a disk."""
    with open(disk / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def make_space(disk):
    (disk / "filler").unlink()


@pytest.fixture(scope="module")
def trained():
    """What several tests compare with, trained by the first of them."""
    return {}


@pytest.fixture
def reference(gnexp, workdir, harness, trained):
    """What the study holds that never met a full disk."""
    if not trained:
        assert gnexp(*WORDS).code == 0
        trained.update(harness.contents(STUDY))
        shutil.rmtree(STUDY)
    return trained


def mount_of(folder):
    """Where the disk of a folder is mounted, as df says."""
    text = subprocess.run(["df", "--output=target", folder], capture_output=True, text=True)
    return text.stdout.splitlines()[-1]


def half_files():
    """Return what a writer that failed should have taken away."""
    return [p.name for p in STUDY.rglob("*") if p.suffix == ".tmp" or p.name.startswith(".")]


def assert_told(answer):
    assert answer.code == 1, answer.out + answer.err
    assert "No space left on device" in answer.out.splitlines()[-1]
    assert "Traceback" not in answer.out + answer.err


# Run's methods, after the first call of which there is no space left.
MOMENTS = ("write_provenance", "write_checkpoint", "add_result")


@pytest.mark.parametrize("method", MOMENTS)
def test_a_disk_that_fills_up_is_named_and_the_same_command_goes_on_once_there_is_space(
    method, gnexp, disk, harness, reference, monkeypatch
):
    write_whole, stored, full = files.write_whole, getattr(Run, method), []

    def fill_then_write(path, data):
        if full:  # what was replaced by smaller files has left a gap
            fill(disk)
        write_whole(path, data)

    def store_then_fill(self, *words, **more):
        stored(self, *words, **more)
        full.append(True)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", fill_then_write)
        patch.setattr(Run, method, store_then_fill)
        assert_told(gnexp(*WORDS))
    assert half_files() == []
    make_space(disk)
    answer = gnexp(*WORDS)
    assert answer.code == 0, answer.out + answer.err
    assert "corrupt" not in answer.out
    assert ("epoch 1:" in answer.out) == (method == "write_provenance")
    assert harness.differences(reference, harness.contents(STUDY)) == []


REFUSALS = {
    "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "over quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "read-only": OSError(errno.EROFS, os.strerror(errno.EROFS), "disk/main/x"),
    "broken": OSError(errno.EIO, os.strerror(errno.EIO)),
    "taken away": PermissionError(errno.EACCES, os.strerror(errno.EACCES), "disk/main/x"),
    "PyTorch's": RuntimeError(
        "[enforce fail at inline_container.cc:668] . PytorchStreamWriter"
        " failed writing file data/3: file write failed"
    ),
    "numpy's": OSError("400000 requested and 0 written"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_refuses_a_file_is_named_with_the_folder_and_its_disk(kind, workdir):
    STUDY.mkdir(parents=True)
    sentence = disk_failure(REFUSALS[kind], STUDY)
    assert sentence.startswith("disk/main cannot be written to: ")
    assert f"(disk at {mount_of(STUDY)}, " in sentence


def test_a_step_whose_checkpoint_the_disk_refuses_is_not_halved(
    gnexp, harness, reference, monkeypatch
):
    """A checkpoint of one seed would fit, one of the step's two does not."""
    write_whole, sizes = files.write_whole, []

    def write(path, data):
        if path.name == "checkpoint.pt":
            sizes.append(len(data))
            if len(data) > 0.75 * sizes[0]:
                raise REFUSALS["PyTorch's"]
        write_whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", write)
        answer = gnexp(*WORDS)
    assert answer.code == 1
    (told,) = [line for line in answer.out.splitlines() if line.startswith("failed: ")]
    assert told.startswith("failed: study=main: disk/main cannot be written to: ")
    assert "trying halves" not in answer.out
    assert "Traceback" not in answer.out + answer.err
    assert not list(STUDY.glob("*/traceback*"))
    assert "will be tried again" in gnexp("status", "out=disk").out
    assert gnexp(*WORDS).code == 0
    assert harness.differences(reference, harness.contents(STUDY)) == []


def test_a_disk_that_fills_up_in_a_grid_ends_it_in_one_sentence(gnexp, disk, harness, monkeypatch):
    grid = ("train", "-m", *(word for word in TINY if word not in ("batch=10", "epochs=3")))
    grid += ("lr=0.1,0.2", "batch=10", "epochs=1", "workers=1", "out=disk", "report.format=[png]")
    stored, full = Run.write_checkpoint, []

    def store_then_fill(self, data):
        stored(self, data)
        if not full:
            fill(disk)
            full.append(True)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_checkpoint", store_then_fill)
        answer = gnexp(*grid)
    assert answer.code == 1
    assert answer.out.count("No space left on device") == 1, answer.out
    make_space(disk)
    assert gnexp(*grid).code == 0
    resumed = harness.contents(STUDY)
    shutil.rmtree(STUDY)
    assert gnexp(*grid).code == 0
    assert harness.differences(harness.contents(STUDY), resumed) == []


def test_a_folder_that_disappears_ends_the_training_in_a_sentence(
    gnexp, harness, reference, monkeypatch
):
    stored = Run.write_checkpoint

    def store_then_lose(self, data):
        stored(self, data)
        shutil.rmtree(STUDY)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_checkpoint", store_then_lose)
        answer = gnexp(*WORDS)
    assert answer.code == 1
    assert "disk/main cannot be written to: No such file or directory" in answer.out
    assert "trying halves" not in answer.out
    assert gnexp(*WORDS).code == 0
    assert harness.differences(reference, harness.contents(STUDY)) == []


def test_the_traceback_of_a_failure_goes_when_the_run_completes(
    gnexp, harness, reference, monkeypatch
):
    def fail(*_):
        raise RuntimeError("of the model")

    with monkeypatch.context() as patch:
        patch.setattr(GroupTrainer, "_finish", fail)
        assert gnexp(*WORDS).code == 1
    assert len(list(STUDY.glob("*/traceback*"))) == 2
    assert gnexp(*WORDS, "retry=failed").code == 0
    assert not list(STUDY.glob("*/traceback*"))
    (run,) = STUDY.glob("bn-*")
    assert {status["why"] for status in Run(run).statuses().values()} == {""}
    assert "traceback" not in (run / "digests.json").read_text()


def test_a_disk_that_is_full_from_the_start_is_named_before_anything_is_trained(
    gnexp, disk, harness, reference
):
    fill(disk)
    answer = gnexp(*WORDS)
    assert answer.code == 2
    (sentence,) = answer.err.splitlines()
    assert "out=disk" in sentence
    assert "No space left on device" in sentence
    assert "epoch" not in answer.out
    assert [path for path in STUDY.rglob("*") if path.is_file()] == []
    make_space(disk)
    assert gnexp(*WORDS).code == 0
    assert harness.differences(reference, harness.contents(STUDY)) == []


def test_a_report_that_finds_no_space_is_a_failure_of_its_own_and_made_by_the_next_call(
    gnexp, disk
):
    grid = ("train", "-m", *TINY, "workers=1", "out=disk")
    assert gnexp(*grid).code == 0
    page = STUDY / "report" / "index.html"
    page.unlink()
    fill(disk)
    answer = gnexp(*grid)
    assert_told(answer)
    assert "1 run: 1 complete" in answer.out
    assert half_files() == [".made.json"]
    make_space(disk)
    assert gnexp(*grid).code == 0
    assert page.is_file()


def test_a_measurement_that_finds_no_space_is_named_and_made_by_the_next_call(gnexp, disk):
    words = ("measure", "out=disk", "gradients_at=[2,5]", "gradients=4", "device=cpu")
    assert gnexp("train", *TINY, "workers=1", "out=disk").code == 0
    assert gnexp("report", "out=disk").code == 0
    fill(disk)
    answer = gnexp(*words)
    assert answer.code == 1
    assert "No space left on device" in answer.out
    assert "Traceback" not in answer.out + answer.err
    make_space(disk)
    assert gnexp(*words).code == 0
    (run,) = STUDY.glob("bn-*")
    assert {row["at_batch"] for row in Run(run).rows("gradients.csv")} == {2, 5, 10}


def test_a_limit_on_the_size_of_files_is_named_and_the_next_call_is_unharmed(
    gnexp, harness, reference
):
    def limit():  # tables and results fit, the checkpoint does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    limited = subprocess.run(
        [sys.executable, "-m", "gnexp", *WORDS],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # which the digits depend on
        timeout=120,
    )
    assert limited.returncode == 1, limited.stdout + limited.stderr
    assert "File too large" in limited.stdout.splitlines()[-1]
    assert "Traceback" not in limited.stdout + limited.stderr
    assert half_files() == []
    assert not list(STUDY.glob("*/checkpoint.pt"))
    assert gnexp(*WORDS).code == 0
    assert harness.differences(reference, harness.contents(STUDY)) == []
