"""The checkpoint of a run: for every seed its last weights and, while it trains, its momentum.

checkpoint.pt maps a seed, as text, to {"epoch", "model", "rows", "step", "lrs", "threads"} and,
unfinished, "momentum"; "attributes" where training changes some that the state dict lacks. "rows"
are what the seed gave to the run's tables so far. "step" names the trainings that shared a step,
"RUN/SEED" each, in their order, "lrs" their rates and "threads" those of their process: continued
in the same group, and only then, float32 numbers are the same to the last bit. In the middle of
an epoch there are "updates", the number of those made in it, "sums", "time_s" and "random_states"
too.
"""

import io
import zipfile
from typing import Any

import torch

from gnexp.norms.trials import first_line
from gnexp.store.files import corrupt_file
from gnexp.store.run import Run

State = dict[str, Any]


def save_states(run: Run, states: dict[int, State]) -> None:
    """Put these seeds' states into the checkpoint, beside those of the other seeds."""
    with run.writing():
        _write(run, {**load_states(run), **states})


def drop_states(run: Run, seeds: list[int]) -> None:
    """Take these seeds out of the checkpoint, where they are in it."""
    with run.writing():
        states = load_states(run)
        kept = {seed: state for seed, state in states.items() if seed not in seeds}
        if len(kept) < len(states):
            _write(run, kept)


def _write(run: Run, states: dict[int, State]) -> None:
    buffer = io.BytesIO()
    torch.save({str(seed): states[seed] for seed in sorted(states)}, buffer)
    run.write_checkpoint(buffer.getvalue())


def load_states(run: Run) -> dict[int, State]:
    """Return the stored states by seed, {} without a checkpoint.

    Raises CorruptFile, naming the file, when it cannot be read or any byte of a tensor has changed.
    """
    data = run.checkpoint()
    if data is None:
        return {}
    try:
        return {int(seed): dict(state) for seed, state in read_tensors(data).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise corrupt_file(run.folder / "checkpoint.pt", error) from error


def read_tensors(data: bytes) -> Any:
    """Return what `torch.save` wrote; nothing that it holds is executed.

    Raises ValueError, with the first line of the reason, for other bytes.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):  # torch.load does not look at the checksums
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if bad := archive.testzip():
                    raise ValueError(f"{bad} has another checksum")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything at all
        raise ValueError(first_line(error)) from error
