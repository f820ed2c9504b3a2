"""TensorBoard event files made from stored runs: RUN/tensorboard/seed-K/events.out.tfevents.K.

The same store gives the same bytes, and what a further epoch adds stands at the end. So a file that
holds the beginning of what it should is continued in place, where TensorBoard, which keeps it open,
sees it at once; one that a killed or changed training left otherwise is replaced whole.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from gnexp.runner.loggers.points import LoggedRun
from gnexp.store.files import write_whole
from gnexp.store.run import Run

FOLDER = "tensorboard"


def write_events(run: Run, seeds: Iterable[int], stored: LoggedRun) -> list[Path]:
    """Bring the event files of these seeds to what the run holds; return the folder, if any."""
    written = []
    for seed in seeds:
        folder = run.folder / FOLDER / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        _bring_to(folder / f"events.out.tfevents.{seed}", _records(stored, seed))
        written.append(run.folder / FOLDER)
    return written[:1]


def _bring_to(path: Path, wanted: bytes) -> None:
    there = path.read_bytes() if path.is_file() else b""
    if there == wanted:
        return
    if there and wanted.startswith(there):
        # Killed within this, the file ends within a record: readers wait there for the rest.
        with open(path, "ab") as file:
            file.write(wanted[len(there) :])
        return
    write_whole(path, wanted)


def _records(stored: LoggedRun, seed: int) -> bytes:
    """Return the event file of one seed."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in _events(stored, seed):
        writer.write(event.SerializeToString(deterministic=True))
    return buffer.getvalue()


def _events(stored: LoggedRun, seed: int) -> Iterator[Event]:
    yield Event(wall_time=stored.started_s, file_version="brain.Event:2")
    # Seeds of a run are one row of the HParams view: a group of sessions, with their mean.
    session = hparams_pb(stored.hyperparameters, stored.name, stored.started_s)
    for value in session.value:  # a map has no order, which would give other bytes each time
        content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        value.metadata.plugin_data.content = content.SerializeToString(deterministic=True)
    yield Event(wall_time=stored.started_s, summary=session)
    for epoch, wall_time_s, values in stored.points(seed):
        scalars = [Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        yield Event(wall_time=wall_time_s, step=epoch, summary=Summary(value=scalars))
