"""The norm under test: claims build its layers and observe only what they do.

Shapes: N examples, C channels, H and W pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gnexp.data.seeding import derived_seed, generator
from gnexp.measure.parameters import BETA_NAMES, GAMMA_NAMES
from gnexp.models.initialization import start
from gnexp.models.resnet import build_model
from gnexp.norms.module_state import copied
from gnexp.norms.trials import error_text

WIDTHS = (16, 32, 64)  # of a network, the first that the norm's groups divide


class NormError(Exception):
    """A norm did what no layer may do; the text is a sentence that names it."""


@dataclass(frozen=True)
class Subject:
    """A norm under test and what it is tested on.

    build: called with a number of channels. label: its name for sentences and tables. groups:
    how many groups it says it has at C channels, None where it says nothing. regroup: called
    with (channels, groups), for norms whose groups can be chosen. reference: the float64
    reference it must agree with, None to look for one; options: what it was built with, for the
    reference. start: how its networks start, keywords of `start`. x_NCHW, y_N: normalized
    float32 images and their labels, of so many classes. channels: of a single layer. draws:
    independent draws behind a statistical claim.
    """

    label: str
    build: Callable[[int], nn.Module]
    x_NCHW: Tensor
    y_N: Tensor
    classes: int = 10
    groups: Callable[[int], int] | None = None
    regroup: Callable[[int, int], nn.Module] | None = None
    reference: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    start: Mapping[str, object] = field(default_factory=dict)
    channels: int = 64
    draws: int = 64
    seed: int = 0

    def layer(self, channels: int | None = None) -> nn.Module:
        """Return a new layer in float64 and training mode, gamma 1 and beta 0 where it has them.

        Raises NormError when it cannot be built.
        """
        return self._prepared(lambda: self.build(channels or self.channels))

    def regrouped(self, groups: int, channels: int | None = None) -> nn.Module:
        """Return a new layer as `layer` does, with another number of groups."""
        return self._prepared(lambda: self.regroup(channels or self.channels, groups))

    def _prepared(self, build: Callable[[], nn.Module]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, "build"))
            try:
                layer = build()
            except Exception as error:
                raise NormError(f"{self.label} cannot be built: {error}") from error
        layer = layer.double().train()
        gamma, beta = affine(layer)
        with torch.no_grad():
            if gamma is not None:
                gamma.fill_(1.0)
            if beta is not None:
                beta.zero_()
        return layer

    def network(
        self, model: str, *, classes: int | None = None, zero_gamma: bool = False, seed: int = 0
    ) -> nn.Module:
        """Return a freshly initialized float32 network of the table in training mode.

        It has the first of the widths 16, 32, 64 in which the norm can be built at every layer.
        Raises NormError when there is none.
        """
        for width in WIDTHS:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derived_seed(seed, "build"))
                try:
                    net = build_model(model, self.build, classes or self.classes, width)
                    break
                except Exception as error:
                    if width == WIDTHS[-1]:
                        raise NormError(f"{self.label} in {model}: {error}") from error
        try:
            start(net, generator(seed, "initialization"), zero_gamma=zero_gamma, **self.start)
        except ValueError as error:
            raise NormError(f"{self.label}: {error}") from error
        return net.train()

    def generator(self, purpose: str, *counters: int) -> torch.Generator:
        """Return the random stream of one purpose of the check."""
        return generator(self.seed, f"passport {purpose}", *counters)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Return standard normal float64 draws, the same ones for every norm."""
        g = self.generator(purpose)
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def features(self, purpose: str, n: int, height: int = 5, width: int = 7) -> Tensor:
        """Return (N, C, H, W) float64 activations in which every example and channel has its own
        level (normal, sd 1) and spread (log-uniform in [0.5, 2]), so that no two sets of values
        that a norm may pool over look alike."""
        g = self.generator(purpose)
        shape = (n, self.channels, 1, 1)
        level = torch.randn(shape, generator=g, dtype=torch.float64)
        spread = 4 ** (torch.rand(shape, generator=g, dtype=torch.float64) - 0.5)
        values = torch.randn(n, self.channels, height, width, generator=g, dtype=torch.float64)
        return level + spread * values

    def apply(self, layer: nn.Module, x_NCHW: Tensor) -> Tensor:
        """Return the layer's output; raises NormError unless it is what a norm must return."""
        try:
            y = layer(x_NCHW)
        except Exception as error:
            shape, dtype = tuple(x_NCHW.shape), str(x_NCHW.dtype).removeprefix("torch.")
            raise NormError(
                f"{self.label} raised {error_text(error)} in a forward pass of {shape} in {dtype}"
            ) from error
        if not isinstance(y, Tensor):
            raise NormError(f"{self.label} returned a {type(y).__name__}, not one tensor")
        for what in ("shape", "dtype", "device"):
            got, wanted = getattr(y, what), getattr(x_NCHW, what)
            if got != wanted:
                got, wanted = (tuple(v) if what == "shape" else v for v in (got, wanted))
                raise NormError(f"{self.label} returned the {what} {got} for {wanted}")
        if not torch.isfinite(y).all():
            raise NormError(f"{self.label} returned values that are not finite, for finite ones")
        return y


def affine(layer: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Return (gamma, beta): the layer's own parameters of these names, None where it has none."""
    own = dict(layer.named_parameters(recurse=False))
    gamma = next((own[name] for name in GAMMA_NAMES if name in own), None)
    beta = next((own[name] for name in BETA_NAMES if name in own), None)
    return gamma, beta


def clone(layer: nn.Module) -> nn.Module:
    """Return a copy with the same weights and buffers, so that one use cannot change the next."""
    return copied(layer)


def rms(x: Tensor) -> float:
    """Return the root of the mean square."""
    return x.detach().square().mean().sqrt().item()
