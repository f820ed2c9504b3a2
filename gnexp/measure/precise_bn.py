"""Precise statistics for batch norm: over many images at once, layer by layer.

A layer "with running statistics" holds 1-D buffers running_mean and running_var, of its input over
all axes but the second; evaluation uses them, whatever the layer is called.

Shapes: N images, C channels, H, W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn

from gnexp.measure.preserve_state import preserve_state

_PART = 2**20  # values in float64 at a time: as many as fit in a cache
Forward = Callable[[Tensor], Tensor]


class NoPreciseStatistics(ValueError):
    """The statistics of a layer over the training images do not exist, or its input hides them."""


def running_layers(model: nn.Module, frozen: bool = False) -> dict[str, nn.Module]:
    """Return the layers with running statistics by their names in the model; "model" for itself.

    Those of a layer that says it pools nothing, as frozen batch norm, are constants of it, and it
    is left out unless `frozen`.
    """
    return {
        name or "model": module
        for name, module in model.named_modules()
        if all(_is_vector(module._buffers.get(b)) for b in ("running_mean", "running_var"))
        and (frozen or getattr(module, "pools", None) != "")
    }


def _is_vector(buffer: Tensor | None) -> bool:
    return buffer is not None and buffer.ndim == 1


@contextmanager
def precise_statistics(
    model: nn.Module,
    chunks: Sequence[Tensor],
    forward: Forward | None = None,
    *,
    frozen: bool = False,
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Within the block the running statistics are those of the images in `chunks`.

    chunks: (n, C, H, W) each; a single one is passed through the model once, more of them once per
    layer. forward: a forward pass of the model on a chunk, if not `model` itself. frozen: frozen
    statistics give way too. Gives, by layer, mean and variance (C,) in float64: over all images and
    pixels at once (not the mean of batch variances, which lacks the variance between batches) and
    biased, as what a batch is normalized by. Each layer's input is what the earlier layers make of
    it in evaluation mode with population statistics. The model is in evaluation mode; afterwards it
    is as it was, bit by bit.

    Raises NoPreciseStatistics, a ValueError that names the layer, if a layer is called twice in one
    forward pass (its second input would depend on the statistics of both) or its running
    statistics are not one per channel.
    """
    forward = forward or model
    with preserve_state(model):
        model.eval()
        with torch.no_grad():
            calls, _ = dry_pass(model, forward, chunks[0][:1], frozen=frozen)
            layers = _in_order(calls, running_layers(model, frozen))
            if len(chunks) == 1:
                found = _in_one_pass(layers, forward, chunks[0])
            else:
                found = {n: _at_one_layer(layer, forward, chunks) for n, layer in layers.items()}
        yield found


def dry_pass(
    model: nn.Module, forward: Forward, x_1CHW: Tensor, *, frozen: bool = False
) -> tuple[list[tuple[str, int]], int]:
    """Return (layer, channels of its input) of each call of a layer with running statistics, in
    order of execution, and the bytes of the largest activation; of one image, in evaluation mode.
    """
    names = {module: name for name, module in running_layers(model, frozen).items()}
    calls: list[tuple[str, int]] = []
    largest = 0

    def watch(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        nonlocal largest
        if module in names:
            calls.append((names[module], input_of(args, kwargs).shape[1]))
        if isinstance(output, Tensor):
            largest = max(largest, output.nbytes)

    with preserve_state(model), torch.no_grad(), ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(watch, with_kwargs=True))
        model.eval()
        forward(x_1CHW)
    return calls, largest


def input_of(args: tuple, kwargs: dict) -> Tensor:
    """Return the first tensor a module was called with, by position or by name."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _in_order(calls: list[tuple[str, int]], layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the layers in order of execution; raises NoPreciseStatistics for what rules it out."""
    ordered: dict[str, nn.Module] = {}
    for name, channels in calls:
        if name in ordered:
            raise NoPreciseStatistics(
                f"{name} is called twice in one forward pass: its second input depends on its own "
                f"statistics, so that those of the population are not defined; use two layers"
            )
        ordered[name] = layers[name]
        held = len(layers[name].running_mean)
        if held != channels:
            raise NoPreciseStatistics(
                f"{name} holds {held} running statistics for an input of {channels} channels; "
                f"those of the population need one per channel"
            )
    return ordered


def _in_one_pass(
    layers: dict[str, nn.Module], forward: Forward, x_NCHW: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Set each layer's statistics from its input on the way, before the layer uses them."""
    found, names = {}, {layer: name for name, layer in layers.items()}

    def watch(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        moments = _Moments()
        moments.add(input_of(args, kwargs))
        found[names[layer]] = moments.fill(layer)

    with ExitStack() as hooks:
        for layer in names:
            hooks.enter_context(layer.register_forward_pre_hook(watch, with_kwargs=True))
        forward(x_NCHW)
    return found


class _SeenEnough(Exception):
    """Leaves a forward pass at the layer that was to be watched."""


def _at_one_layer(
    layer: nn.Module, forward: Forward, chunks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Set one layer's statistics from its inputs over all chunks; the earlier ones' are set."""
    moments = _Moments()

    def stop(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        moments.add(input_of(args, kwargs))
        raise _SeenEnough

    with layer.register_forward_pre_hook(stop, with_kwargs=True):
        for x_NCHW in chunks:
            with suppress(_SeenEnough):
                forward(x_NCHW)
    return moments.fill(layer)


class _Moments:
    """Count, mean (C,) and sum of squared deviations (C,) of values that arrive in parts."""

    def __init__(self) -> None:
        self.count, self.mean_C, self.scatter_C = 0, 0.0, 0.0

    def add(self, x_NCHW: Tensor) -> None:
        """Merge in the values of (n, C, ...), in float64."""
        for part in x_NCHW.split(max(1, _PART * len(x_NCHW) // x_NCHW.numel())):
            values = part.double()
            axes = [axis for axis in range(part.ndim) if axis != 1]
            mean_C = values.mean(dim=axes, keepdim=True)
            within_C = (values - mean_C).square().sum(dim=axes)  # var_mean takes four times as long
            mean_C = mean_C.flatten()
            count = part.numel() // part.shape[1]
            # Scatter within the part, and between its mean and that of the parts before.
            step_C, total = mean_C - self.mean_C, self.count + count
            between_C = step_C.square() * (self.count * count / total)
            self.scatter_C = self.scatter_C + within_C + between_C
            self.mean_C = self.mean_C + step_C * (count / total)
            self.count = total

    def fill(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Make these the running statistics of the layer; return mean and biased variance."""
        var_C = self.scatter_C / self.count
        layer.running_mean.copy_(self.mean_C)
        layer.running_var.copy_(var_C)
        return self.mean_C, var_C
