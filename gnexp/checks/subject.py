"""The norm under test: claims build its layers and observe only what they do.

Shapes: N examples, C channels, H and W pixels.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from gnexp.checks.statistic_sets import StatisticSets, divisors, with_equal_sets
from gnexp.data.seeding import derived_seed, generator
from gnexp.measure.parameters import BETA_NAMES, GAMMA_NAMES
from gnexp.models.initialization import start
from gnexp.models.resnet import build_model
from gnexp.norms.trials import error_text

DEFAULT_GROUPS = 8
PLACES = 4  # at which a layer without a statistic is told from others
UNCHANGED = 1e-10  # of float64 numbers of size 1
DEFAULT_EPS = 1e-5
LEAST_EPS, MOST_EPS = 1e-12, 0.1  # of one that is found by measurement
EPS_NAMES = ("eps", "epsilon", "variance_epsilon")
WIDTHS = (16, 32, 64)  # of a network or a small layer: the first that the norm's groups divide


class NormError(Exception):
    """A norm did what no layer may do; the text is a sentence that names it."""


@contextmanager
def named(what: str) -> Iterator[None]:
    """Turn whatever is raised within the block into a NormError that names its place."""
    try:
        yield
    except Exception as error:
        raise NormError(f"{what} raised {type(error).__name__}: {error}") from error


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

    def layer(self) -> nn.Module:
        """Return a new layer in float64 and training mode, gamma 1 and beta 0 where it has them.

        Raises NormError when it cannot be built.
        """
        try:
            layer = _seeded(self.seed, lambda: self.build(self.channels)).double().train()
        except Exception as error:
            raise NormError(f"{self.label} cannot be built: {error}") from error
        with torch.no_grad():
            for parameter, value in zip(affine(layer), (1.0, 0.0)):
                if parameter is not None:
                    parameter.fill_(value)
        return layer

    def regrouped(self, groups: int) -> "Subject":
        """Return the subject with another number of groups."""
        return replace(self, build=lambda c: self.regroup(c, groups), groups=lambda c: groups)

    def of_few_channels(self) -> "list[Subject]":
        """Return the subject with each of the few numbers of channels that it can be built with.

        Raises NormError when there is none.
        """
        built = []
        for channels in WIDTHS:
            small = replace(self, channels=channels)
            try:
                small.layer()
                built.append(small)
            except NormError:
                if channels == WIDTHS[-1] and not built:
                    raise
        return built

    def network(
        self,
        model: str,
        build: Callable[..., nn.Module] | None = None,
        *,
        classes: int | None = None,
        seed: int = 0,
        **how: object,
    ) -> nn.Module:
        """Return a freshly initialized float32 network in training mode.

        It has the first of WIDTHS in which the norm can be built at every layer. build: called
        with the norm, the classes and the width, by default that of the table. how: keywords of
        `start`. Raises NormError when there is no such width.
        """
        build = build or partial(build_model, model)
        for width in WIDTHS:
            try:
                net = _seeded(seed, lambda w=width: build(self.build, classes or self.classes, w))
                break
            except Exception as error:
                if width == WIDTHS[-1]:
                    raise NormError(f"{self.label} in {model}: {error}") from error
        try:
            start(net, generator(seed, "initialization"), **{**self.start, **how})
        except ValueError as error:
            raise NormError(f"{self.label}: {error}") from error
        return net.train()

    def generator(self, purpose: str, *counters: int) -> torch.Generator:
        """Return the random stream of one purpose of the check."""
        return generator(self.seed, f"passport {purpose}", *counters)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Return standard normal float64 draws, the same ones for every norm."""
        return torch.randn(*shape, generator=self.generator(purpose), dtype=torch.float64)

    def features(self, purpose: str, n: int, height: int = 5, width: int = 7) -> Tensor:
        """Return (N, C, H, W) float64 activations in which every example and channel has its own
        level (normal, sd 1) and spread (log-uniform in [0.5, 2]), so that no two sets of values
        that a norm may pool over look alike."""
        how = {"generator": self.generator(purpose), "dtype": torch.float64}
        level = torch.randn(n, self.channels, 1, 1, **how)
        spread = 4 ** (torch.rand(n, self.channels, 1, 1, **how) - 0.5)
        return level + spread * torch.randn(n, self.channels, height, width, **how)

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

    def output(self, x_NCHW: Tensor) -> Tensor:
        """Return what a new layer makes of x, without a graph."""
        return self.apply(self.layer(), x_NCHW).detach()

    @cached_property
    def sets_used(self) -> StatisticSets | None:
        """The finest sets of values within which the layer's output has mean 0 and variance 1.

        None when there are none. Found by measurement, in training mode.
        """
        y_NCHW = self.output(self.features("sets", 4))
        finer = [StatisticSets("group", g) for g in reversed(divisors(self.channels))]
        every = (*finer, StatisticSets("batch_channel"), StatisticSets("batch"))
        return next((sets for sets in every if sets.standardized_in(y_NCHW)), None)

    @cached_property
    def sets_claimed(self) -> StatisticSets:
        """The sets that the article's text would have: groups of each example.

        As many groups as the norm says it has; where it says nothing, as many as it uses; else 8.
        """
        if self.groups is not None:
            return StatisticSets("group", self.groups(self.channels))
        used = self.sets_used
        return used if used and used.scope == "group" else StatisticSets("group", DEFAULT_GROUPS)

    @property
    def sets(self) -> StatisticSets:
        """The sets that the layer uses, else those of the article."""
        return self.sets_used or self.sets_claimed

    @cached_property
    def takes_no_statistic(self) -> bool:
        """True if no value of the output depends on another value of the input than its own.

        Found by measurement, in training mode: of the input all values but one are replaced, the
        same one of the output must stay. A sentence on a norm's statistics is vacuous then.
        """
        x_NCHW, other_NCHW = (self.features(f"statistic {name}", 3) for name in ("x", "other"))
        g = self.generator("statistic places")

        def output(input_NCHW: Tensor) -> Tensor:
            torch.default_generator.manual_seed(self.seed)  # for layers that draw
            return self.output(input_NCHW)

        with torch.random.fork_rng(devices=[]):
            y_NCHW = output(x_NCHW)
            for _ in range(PLACES):
                at = tuple(torch.randint(size, (), generator=g).item() for size in x_NCHW.shape)
                mixed_NCHW = other_NCHW.clone()
                mixed_NCHW[at] = x_NCHW[at]
                if (output(mixed_NCHW)[at] - y_NCHW[at]).abs() > UNCHANGED:
                    return False
        return True

    @cached_property
    def eps(self) -> float:
        """The eps that the layer states, else the one found by measurement, else the default.

        Of a small variance s the share v = s / (s + eps) is left, so that eps = s (1 / v - 1).
        """
        layer = self.layer()
        for name in EPS_NAMES:
            stated = getattr(layer, name, None)
            if isinstance(stated, int | float) and stated > 0:
                return float(stated)
        if self.sets_used is None:
            return DEFAULT_EPS
        x_NCHW = with_equal_sets(self.features("core eps", 4), DEFAULT_EPS)
        left = self.sets_used.variance(self.output(x_NCHW)).mean().item()
        found = DEFAULT_EPS * (1 / left - 1) if left > 0 else math.inf
        return found if LEAST_EPS < found < MOST_EPS else DEFAULT_EPS


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "build"))
        return build()


def affine(layer: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Return (gamma, beta): the layer's own parameters of these names, None where it has none."""
    own = dict(layer.named_parameters(recurse=False))
    names = (GAMMA_NAMES, BETA_NAMES)
    return tuple(next((own[n] for n in each if n in own), None) for each in names)


def rms(x: Tensor) -> float:
    """Return the root of the mean square."""
    return x.detach().square().mean().sqrt().item()


def relative_change(new: Tensor, old: Tensor) -> float:
    """Return the RMS of the difference over that of the old values; 0 also where all is 0."""
    off = rms(new - old)
    return off / rms(old) if off else 0.0
