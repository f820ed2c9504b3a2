"""From a config to the model that a seed's training starts from: a new one, or stored weights."""

from typing import Any

from torch import nn

from gnexp.config.schema import TrainConfig
from gnexp.data.device_images import DeviceDataset
from gnexp.data.sources import DataSummary
from gnexp.measure.initial_statistics import frozen_without_statistics, reestimate
from gnexp.models.load_weights import Transfer, transfer
from gnexp.runner.build import initial_weights
from gnexp.runner.build.model import norm_sites, seeded_model
from gnexp.training.precision import matrix_precision


def load_initial_model(
    config: TrainConfig, images: DeviceDataset, seed: int
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Return the model from which a seed's training starts, on the images' device.

    Beside it what of the weights at `init_from` it holds, as JSON-ready values, None without.
    Raises ValueError where they do not fit, or are no longer those that the run is named by.
    """
    model, record = seeded_model(config, images.summary, seed), None
    if config.init_from is not None:
        source = initial_weights.read_source(config.init_from)
        moved = load_start(config, source, model, images.summary, seed)
        record = {
            "source": source.name,
            "checksum": source.checksum,
            "seed": source.seed(seed),
            "statistics": config.init_statistics,
            **moved.record(),
        }
    model = model.to(images.x_train.device)
    if config.init_statistics == "reestimate":
        with matrix_precision(config.precision):
            reestimate(model, images, config.precision)
    return model, record


def load_start(
    config: TrainConfig,
    source: initial_weights.Source,
    model: nn.Module,
    data: DataSummary,
    seed: int,
) -> Transfer:
    """Load a seed's stored weights into its new model; see `load_initial_model`."""
    source_text = f"init_from={config.init_from}"
    if config.init_checksum not in (None, source.checksum):
        raise ValueError(
            f"{source_text}: the weights are no longer those that this run is named by"
        )
    weights = source.weights(seed)
    try:
        moved = transfer(model, weights, list(norm_sites(config, data)), len(data.classes))
    except ValueError as error:
        raise ValueError(f"{source_text}: {error}") from error
    bare = frozen_without_statistics(model, moved.fresh)
    if bare and config.init_statistics == "keep":
        raise ValueError(
            f"{source_text} holds no running statistics for norm={config.norm['name']} to freeze"
            f" (layer {bare[0]}); start from a run with norm=bn, or type init_statistics=reestimate"
        )
    return moved
