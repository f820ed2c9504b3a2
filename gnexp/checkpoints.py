"""The checkpoint of a run: for every seed its last weights and, while it trains, its optimizer."""

import io
from typing import Any

import torch

from gnexp.study.store import Run
from gnexp.training.step import EagerStep


def state_of(step: EagerStep, epoch: int, keep_optimizer: bool) -> dict[str, Any]:
    """Return one seed's part of the checkpoint; each seed shared its step with nobody."""
    state = {"epoch": epoch, "stack": 1, "model": step.model.state_dict()}
    if keep_optimizer:
        state["optimizer"] = step.optimizer.state_dict()
    return state


def to_bytes(stored: dict[int, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({str(seed): state for seed, state in stored.items()}, buffer)
    return buffer.getvalue()


def load_states(run: Run) -> dict[int, Any]:
    """Return the stored states by seed; an unreadable checkpoint counts as none, and is named."""
    data = run.checkpoint()
    if data is None:
        return {}
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return {int(seed): state for seed, state in loaded.items()}
    except Exception as error:
        print(f"{run.folder / 'checkpoint.pt'} cannot be read ({error}); its seeds start afresh")
        return {}


def stored_weights(run: Run) -> dict[int, dict[str, torch.Tensor]]:
    """Return the last stored weights of every seed."""
    return {seed: state["model"] for seed, state in load_states(run).items()}


def continue_from(run: Run, step: EagerStep, stored: dict[int, Any], seed: int) -> int:
    """Load the seed's stored state if there is one and return the epoch to train next."""
    state = stored.get(seed)
    if state is None:
        run.drop_seed(seed)
        return 1
    step.model.load_state_dict(state["model"])
    if "optimizer" in state:
        step.optimizer.load_state_dict(state["optimizer"])
    return state["epoch"] + 1
