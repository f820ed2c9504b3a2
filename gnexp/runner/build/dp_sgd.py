"""Build and record DP-SGD for privacy=dpsgd. Opacus is imported when it is needed.

The trial of a model is by measurement and not by the norm's name: DP-SGD needs a gradient of each
example, which does not exist where the examples of a batch depend on each other.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnexp.config.identity import norm_label
from gnexp.config.schema import CUSTOM, TrainConfig, is_external
from gnexp.data.device_images import DeviceDataset
from gnexp.measure.per_example import find_mixing_layer
from gnexp.runner.build.data import default_delta

if TYPE_CHECKING:
    from gnexp.training.dp_budget import Budget
    from gnexp.training.dp_sgd import PrivateStep

TRIAL = 3  # images of the trial with hooks; two would hide what is wrong between others


def budget(config: TrainConfig, train_size: int) -> "Budget":
    """Return what a resolved private run may spend; train_size counts as public."""
    from gnexp.training.dp_budget import Budget

    return Budget(
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        sampling_rate=config.update_batch / train_size,
        updates=config.epochs * (train_size // config.update_batch),
    )


def step(
    config: TrainConfig, model: nn.Module, seed: int, images: DeviceDataset, low_memory: bool
) -> "PrivateStep":
    """Return the step of one seed of a private run. low_memory: image by image."""
    from gnexp.training.dp_sgd import PrivateStep

    train_size = len(images.x_train)
    return PrivateStep(
        model,
        1 if low_memory else config.batch,
        config.update_batch,
        config.momentum,
        config.weight_decay,
        clip=config.privacy.clip,
        noise_multiplier=budget(config, train_size).noise_multiplier(),
        seed=None if config.privacy.noise == "secret" else seed,
        mapped=hooks_fail(config, model, images),
    )


def hooks_fail(config: TrainConfig, model: nn.Module, images: DeviceDataset) -> bool:
    """Return whether the gradients of a model need torch.func; tried with noise for images."""
    from gnexp.training.dp_sgd import why_no_private_gradient

    if not is_external(config.model) and config.norm["name"] != CUSTOM:
        return False
    draw = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(TRIAL, *images.x_train.shape[1:], generator=draw)
    device = images.x_train.device
    y_N = torch.zeros(TRIAL, dtype=torch.int64, device=device)
    return why_no_private_gradient(model, x_NCHW.to(device), y_N) is not None


def neighbouring_sets(train_size: int) -> str:
    """Return what data sets epsilon tells apart, as the accountant assumes it.

    Sampling rate and expected batch are the same for both, so that N is no secret; and one image
    more in a larger set may change which N are chosen of it.
    """
    return (
        f"one image added to or removed from the {train_size:,} that are trained on, whose number"
        " and choice count as public"
    )


NOISE = {
    "seeded": "noise and sampling follow from the seed: who knows it can undo both",
    "secret": (
        "noise and sampling are from the system's entropy and not stored: a run that is resumed"
        " draws anew"
    ),
}


def record(config: TrainConfig, train_size: int, updates: int) -> dict[str, Any]:
    """Return the privacy entries of result.json for one training after `updates` updates."""
    from gnexp.training.dp_budget import ACCOUNTANT

    plan = budget(config, train_size)
    return {
        "epsilon_spent": plan.spent(updates),
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier(),
        "clip": config.privacy.clip,
        "sampling_rate": plan.sampling_rate,
        "accountant": ACCOUNTANT,
        "neighbours": neighbouring_sets(train_size),
        "noise": f"{config.privacy.noise}: {NOISE[config.privacy.noise]}",
        "opacus": metadata.version("opacus"),
    }


def problems(
    config: TrainConfig, model: nn.Module, x_NCHW: Tensor, y_N: Tensor, train_size: int
) -> list[str]:
    """Return why a resolved run cannot be trained privately, [] if it can.

    model: as it is initialized. x_NCHW, y_N: some normalized training images and their labels, on
    the model's device.
    """
    delta, epsilon = config.privacy.delta, config.privacy.epsilon
    if delta >= 1 / train_size:
        return [
            f"privacy.delta={delta:g} must be below 1 / {train_size:,} training"
            f" images = {1 / train_size:.3g}: at that delta, publishing one of them as it is would"
            f" count as private; leave it out for {default_delta(train_size):g}"
        ]
    try:
        importlib.import_module("opacus")
    except ImportError as error:
        return [f"privacy=dpsgd needs Opacus ({error}): pip install 'gnexp[dp]'"]
    if why := _why_no_gradients(model, x_NCHW, y_N):
        return [f"norm={norm_label(config.norm)} excludes privacy=dpsgd: {why}"]
    try:
        budget(config, train_size).noise_multiplier()
    except ValueError as error:
        return [
            f"privacy.epsilon={epsilon:g} at delta {delta:.2e} cannot be kept ({error}); use a"
            " larger privacy.epsilon, such as 1"
        ]
    return []


def _why_no_gradients(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> str:
    from gnexp.training.dp_sgd import why_no_private_gradient

    if layer := find_mixing_layer(model, x_NCHW):
        return (
            "a per-example gradient, which DP-SGD clips, does not exist, since the output of"
            f" {layer} for one example depends on the others in its batch; use a norm that treats"
            " each example alone, such as norm=gn, ln or in"
        )
    trial = model, x_NCHW[:TRIAL], y_N[:TRIAL]
    hooks = why_no_private_gradient(*trial)
    mapped = hooks and why_no_private_gradient(*trial, mapped=True)
    if not mapped:
        return ""
    also = "" if mapped == hooks else f", nor torch.func ({mapped})"
    return (
        f"Opacus cannot take the per-example gradients of this model ({hooks}){also}; use another"
        " model or another norm"
    )
