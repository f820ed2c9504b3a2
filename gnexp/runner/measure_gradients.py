"""Gradient variance at the weights of a model, as rows of gradients.csv."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from gnexp.config.schema import TrainConfig
from gnexp.data.device_images import DeviceDataset, draw_batches
from gnexp.data.seeding import derived_seed, own_stream
from gnexp.measure.gradient_noise import choose_draws, measure_gradients
from gnexp.runner.build.data import train_settings
from gnexp.training.precision import matrix_precision


def own_gradients(
    config: TrainConfig, model: nn.Module, images: DeviceDataset, seed: int, epoch: int
) -> list[dict[str, Any]]:
    """Return the rows of one seed's model at its own batch size; none where draws are zero."""
    draws = config.gradients
    if draws is None:
        used = train_settings(config).examples_per_epoch(len(images.x_train))
        draws = choose_draws(config.epochs * used // config.batch)
    batches = [config.batch] if draws else []
    return gradients_at(config, model, images, batches, lambda _: draws, seed, epoch)


def gradients_at(
    config: TrainConfig,
    model: nn.Module,
    images: DeviceDataset,
    batches: Iterable[int],
    draws_of: Callable[[int], int],
    seed: int,
    epoch: int,
) -> list[dict[str, Any]]:
    """Return rows of gradients.csv: the gradient noise at the model's weights per batch size.

    The precision is that of training, except that bf16 runs are measured in float32: rounding
    would count as noise.
    """
    augment, rows = config.data.augment if config.gradients_augment else "none", []
    for batch in batches:
        k, purpose = draws_of(batch), f"gradients-{epoch}-{batch}"
        drawn = draw_batches(images, batch, k, seed, purpose, augment)
        # Models that draw in a forward pass have a stream of this point's own, so that it repeats.
        stream = own_stream(images.x_train.device, derived_seed(seed, f"{purpose} forward"))
        with matrix_precision(config.precision), stream:
            measured = measure_gradients(model, drawn, k, batch)
        rows += [{"seed": seed, "epoch": epoch, "at_batch": batch, **row} for row in measured]
    return rows
