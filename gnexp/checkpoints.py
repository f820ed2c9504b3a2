"""The checkpoint of a run: for every seed its last weights and, while it trains, its momentum.

checkpoint.pt maps a seed, as text, to {"epoch", "step", "lrs", "model"} and, unfinished,
"momentum". "step" names the replicas that shared a step, "RUN/SEED" each, in their order, and "lrs"
their rates: continued in the same company, and only then, float32 numbers are the same to the last
bit.
"""

import io
from collections.abc import Callable
from typing import Any

import torch

from gnexp.study.store import Run

State = dict[str, Any]


def save_states(run: Run, states: dict[int, State]) -> None:
    """Put these seeds' states into the checkpoint, beside those of the other seeds."""
    with run.writing():
        together = {**load_states(run), **states}
        buffer = io.BytesIO()
        torch.save({str(seed): together[seed] for seed in sorted(together)}, buffer)
        run.write_checkpoint(buffer.getvalue())


def load_states(run: Run, say: Callable[[str], None] = print) -> dict[int, State]:
    """Return the stored states by seed; an unreadable checkpoint counts as none, and is named."""
    data = run.checkpoint()
    if data is None:
        return {}
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return {int(seed): state for seed, state in loaded.items()}
    except Exception as error:
        say(f"{run.folder / 'checkpoint.pt'} cannot be read ({error}); its seeds start afresh")
        return {}


def stored_weights(run: Run) -> dict[int, dict[str, torch.Tensor]]:
    """Return the last stored weights of every seed."""
    return {seed: state["model"] for seed, state in load_states(run).items()}
