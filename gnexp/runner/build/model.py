"""From a config to its norm layers and its network, of gnexp's table, a library's or the user's."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gnexp.config.keys import value_of
from gnexp.config.schema import CUSTOM, KEYS, ConvertConfig, ModelConfig, TrainConfig, is_external
from gnexp.data.seeding import derived_seed, generator
from gnexp.data.sources import DataSummary
from gnexp.models.conversion.find_norms import Found
from gnexp.models.external import build_external, constructor, examine, with_norms
from gnexp.models.initialization import start
from gnexp.models.resnet import build_model
from gnexp.norms.layers import momentum_of_batch
from gnexp.norms.registry import NORMS, build_norm, group_count
from gnexp.norms.statistic_size import Undefined
from gnexp.norms.trials import pooled_axes, try_norm
from gnexp.norms.user_code import import_target, norm_text, own_factory
from gnexp.runner.build.code_digest import code_digests
from gnexp.runner.build.data import train_settings

MOST_TRIED = 64  # examples by which the user's own norm shows what it pools over


def norm_factory(config: TrainConfig, train_size: int | None = None) -> Callable[[int], nn.Module]:
    """Return the callable that a model calls with a number of channels to get a norm layer.

    train_size: the number of training images, for layers that may follow the training's length.
    """
    options = {k: v for k, v in config.norm.items() if k not in ("name", "_target_")}
    name = config.norm["name"]
    if name == CUSTOM:
        return own_factory(config.norm["_target_"], options)
    if options.pop("momentum_rule", "batches") == "examples":
        averaged = min(config.batch, options.get("ghost_batch", config.batch))
        # Running statistics move by the mean over all devices.
        options["momentum"] = momentum_of_batch(options["momentum"], averaged * config.devices)
    if train_size is not None and "total_examples" in NORMS[name].options:
        seen = train_settings(config).examples_seen(config.epochs, train_size)  # by all devices
        options.setdefault("total_examples", max(1, seen // config.devices))
    if config.groups is None and config.channels_per_group is None:
        return lambda channels: build_norm(name, channels, **options)
    return lambda channels: build_norm(
        name, channels, num_groups=_groups(config, channels), **options
    )


def _groups(config: TrainConfig, channels: int) -> int:
    return group_count(channels, config.groups, config.channels_per_group, config.groups_fallback)


def try_own_norm(config: TrainConfig, data: DataSummary) -> None:
    """Pass a few values through the user's own norm and back, at each width that the model has.

    Raises ValueError with what it does that no norm may do; see `try_norm`. That is Undefined where
    it does so with one example and not with two.
    """
    if config.norm["name"] != CUSTOM:
        return
    build, examples = norm_factory(config), min(config.batch, 2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for channels in dict.fromkeys(norm_sites(config, data).values()):
            layer = build(channels)
            try:
                try_norm(layer, channels, examples)
            except ValueError as error:
                kind = Undefined if examples == 1 and _takes_two(build, channels) else ValueError
                raise kind(f"{norm_text(config.norm['_target_'])} {error}") from error


def _takes_two(build: Callable[[int], nn.Module], channels: int) -> bool:
    try:
        try_norm(build(channels), channels, 2)
    except ValueError:
        return False
    return True


class _Site(nn.Module):
    """Stands where a norm layer will be, to learn its name and channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


def norm_sites(config: TrainConfig, data: DataSummary) -> dict[str, int]:
    """Return the number of channels at every norm layer of the model, by layer name."""
    if is_external(config.model):
        return {site.name: site.channels for site in _external_norms(config, data).sites}
    return _sites_of_table(config.model.name, config.model.width)


@functools.lru_cache(maxsize=8)
def _sites_of_table(name: str, width: int | None) -> dict[str, int]:
    with torch.device("meta"):
        model = build_model(name, _Site, 2, width)
    return {n: m.channels for n, m in model.named_modules() if isinstance(m, _Site)}


def groups_per_layer(config: TrainConfig, data: DataSummary) -> dict[str, int]:
    """Return the number of groups of every layer under group norm, {} under any other.

    Raises ValueError naming the first layer whose channels the groups do not divide.
    """
    if config.groups is None and config.channels_per_group is None:
        return {}
    counts = {}
    for layer, channels in norm_sites(config, data).items():
        try:
            counts[layer] = _groups(config, channels)
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from None
    return counts


def pools(config: TrainConfig, data: DataSummary) -> str | None:
    """Return the axes, letters of "nchw", over which some layer of the network has a statistic.

    Of the norm: by the table, or by trial at each width where it is the user's own; of the layers
    that an external model keeps: by their kind, or by trial. None where the trial raised.
    """
    entry = NORMS.get(config.norm["name"])
    found = {*(entry.pools if entry else "")}
    if is_external(config.model):
        kept = _external_norms(config, data).pools
        if kept is None:
            return None
        found |= {*kept}
    if entry is None:
        build, examples = norm_factory(config), min(max(config.batch, 2), MOST_TRIED)
        try:
            with torch.random.fork_rng(devices=[]):
                for channels in dict.fromkeys(norm_sites(config, data).values()):
                    found |= {*pooled_axes(build(channels), channels, examples)}
        except Exception:  # whatever the user's code does with a batch that was not asked for
            return None
    return "".join(axis for axis in "nchw" if axis in found)


def network_start(config: TrainConfig) -> dict[str, Any]:
    """Return the keywords of `start`: what the config asks of a new network, or its norm does.

    Raises ValueError for standardized filters without a layer that standardizes what they give.
    """
    entry = NORMS.get(config.norm["name"])
    by_norm = entry.initialization if entry else "he"
    if config.weight_standardization and entry and not entry.pools:
        raise ValueError(
            f"weight_standardization=true needs a norm that standardizes, which"
            f" norm={config.norm['name']} does not: each layer would multiply the variance by its"
            " fan-in; use norm=gn or norm=bn"
        )
    standardized = config.weight_standardization or bool(entry and entry.weight_standardization)
    return {
        "initialization": config.initialization if by_norm == "he" else by_norm,
        "weight_standardization": standardized,
        "zero_gamma": config.zero_gamma,
    }


def _new_external(model: ModelConfig, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    if own := model._target_ is not None:
        construct = import_target(model._target_, "model._target_")
    else:
        construct = constructor(model.library, model.name)
    options, name = model.options or {}, _typed_name(model)
    return build_external(construct, num_classes, options, name, shape, always=not own)


def _typed_name(model: ModelConfig) -> str:
    if model._target_ is not None:
        return f"model._target_={model._target_}"
    return f"model={model.library} model.name={model.name}"


def _external_norms(config: TrainConfig, data: DataSummary) -> Found:
    """Return the norm layers of an external model at the size of the images, cached."""
    asked = [dataclasses.asdict(config.model), dataclasses.asdict(config.convert)]
    code = code_digests(config).get("model")
    return _examined(json.dumps(asked, sort_keys=True), code, data.shape, len(data.classes))


@functools.lru_cache(maxsize=8)
def _examined(asked: str, code: str | None, shape: tuple[int, ...], num_classes: int) -> Found:
    typed, chosen = json.loads(asked)
    model, convert = ModelConfig(**typed), ConvertConfig(**chosen)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        built = _new_external(model, num_classes, shape)
    leave = convert.leave or ()
    return examine(built, shape, num_classes, _typed_name(model), only=convert.only, leave=leave)


def _external_model(
    config: TrainConfig, data: DataSummary, weight_standardization: bool
) -> tuple[nn.Module, list[str]]:
    found = _external_norms(config, data)
    model = _new_external(config.model, len(data.classes), data.shape)
    try:
        return with_norms(
            model,
            found,
            norm_factory(config, data.train_size),
            data.shape,
            weight_standardization=weight_standardization,
        )
    except Undefined:
        raise
    except ValueError as error:
        raise ValueError(f"{_typed_name(config.model)}: {error}") from error


def seeded_model(config: TrainConfig, data: DataSummary, seed: int) -> nn.Module:
    """Return the model of one seed on the CPU; the global random state is left as it was."""
    return seeded_and_converted(config, data, seed)[0]


def seeded_and_converted(
    config: TrainConfig, data: DataSummary, seed: int
) -> tuple[nn.Module, list[str]]:
    """Return the model of one seed, and the fate of each norm layer of an external one."""
    asked, lines = network_start(config), []
    with torch.random.fork_rng(devices=[]):
        # A user's own norm may draw from the global generator when it is built.
        torch.default_generator.manual_seed(derived_seed(seed, "build"))
        if is_external(config.model):  # its convolutions are not all followed by a norm
            standardized = asked.pop("weight_standardization")
            model, lines = _external_model(config, data, standardized)
        else:
            model = _model_of_table(config, data)
    start(model, generator(seed, "initialization"), norms=norm_sites(config, data), **asked)
    return model, lines


MOST_OUTLINES = 8
_outlines: dict[tuple[str, DataSummary], nn.Module] = {}


def model_without_weights(config: TrainConfig, data: DataSummary) -> nn.Module:
    """Return a network of the table under a norm of the table, all of its numbers zero.

    Configs that differ in their batch size get the same one, which is to be looked at alone.
    """
    built_by = [value_of(config, name) for name, key in KEYS.items() if key.builds == "network"]
    if (asked := (str(built_by), data)) not in _outlines:
        with torch.device("meta"):
            model = _model_of_table(config, data)
        start(model, None, norms=norm_sites(config, data), **network_start(config))
        # Not `to_empty`, which spends half a second on imports.
        zeros = {n: torch.zeros(t.shape, dtype=t.dtype) for n, t in model.state_dict().items()}
        model.load_state_dict(zeros, assign=True)
        if len(_outlines) == MOST_OUTLINES:
            _outlines.pop(next(iter(_outlines)))
        _outlines[asked] = model
    return _outlines[asked]


def _model_of_table(config: TrainConfig, data: DataSummary) -> nn.Module:
    norm = norm_factory(config, data.train_size)
    return build_model(config.model.name, norm, len(data.classes), config.model.width)
