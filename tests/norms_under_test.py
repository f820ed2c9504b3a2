"""Norms to check: those of the table, and some that are broken on purpose; and their checks."""

import functools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from gnexp.checks import gradient_by_depth, trained_networks
from gnexp.checks.claims import initialization, isolation, train_vs_eval
from gnexp.checks.finding import Finding, Point
from gnexp.checks.registry import measure_claim
from gnexp.checks.subject import Subject
from gnexp.data.device_images import DeviceDataset, normalize
from gnexp.data.sources import load_images
from gnexp.norms.registry import NORMS, build_norm


class Own(nn.Module):
    """Group norm of consecutive channels, written out so that it can be broken."""

    def __init__(self, num_channels: int, groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def standardize(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), self.groups, -1)
        mean = rows.mean(2, keepdim=True)
        variance = rows.var(2, correction=0, keepdim=True)
        return ((rows - mean) / (variance + self.eps).sqrt()).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.standardize(x) * self.weight[:, None, None] + self.bias[:, None, None]


class NoAffine(nn.Module):
    """Group norm without gamma and beta."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, num_channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Peeks(Own):
    """Looks at the next example of the batch, a little."""

    def standardize(self, x: Tensor) -> Tensor:
        return super().standardize(x + 0.01 * x.roll(1, 0))


class Dithers(Own):
    """Adds noise from the global random state."""

    def standardize(self, x: Tensor) -> Tensor:
        return super().standardize(x) + 1e-4 * torch.randn_like(x)


class Constant(Own):
    """Returns beta for every input."""

    def standardize(self, x: Tensor) -> Tensor:
        return 0 * x


class Tracks(nn.InstanceNorm2d):
    """Instance norm that evaluates with running statistics, as PyTorch offers it."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__(num_channels, affine=True, track_running_stats=True)


class ForgetsEps(Own):
    """Divides by a standard deviation that may be zero."""

    def standardize(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), self.groups, -1)
        rows = rows - rows.mean(2, keepdim=True)
        return (rows / rows.square().mean(2, keepdim=True).sqrt()).reshape(x.shape)


class WrongGroups(Own):
    """Uses half as many groups as it is told."""

    def __init__(self, num_channels: int, groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__(num_channels, groups // 2, eps)


class AlmostInvariant(Own):
    """Lets one percent of the input's own scale through."""

    def standardize(self, x: Tensor) -> Tensor:
        xhat = super().standardize(x)
        rows = x.reshape(len(x), self.groups, -1)
        scale = rows.std(2, correction=0, keepdim=True).clamp_min(1e-12) ** 0.01
        return (xhat.reshape(rows.shape) * scale).reshape(x.shape)


BROKEN = {
    "peeks": Peeks,
    "forgets eps": ForgetsEps,
    "wrong groups": WrongGroups,
    "almost invariant": AlmostInvariant,
}


@functools.cache
def _images() -> tuple[Tensor, Tensor]:
    images = DeviceDataset(load_images("shapes10", train_limit=512, test_limit=10), "cpu")
    return normalize(images.x_train, images.mean, images.std), images.y_train


def subject(norm: str | type[nn.Module], groups: int | None = None, **more: object) -> Subject:
    """Return a subject: a norm of the table by name, or a class built as norm(C, groups=8)."""
    data = dict(zip(("x_NCHW", "y_N"), _images()))
    if isinstance(norm, str):
        number = groups or 8
        fixed = {"gn": lambda c: number, "ln": lambda c: 1, "in": lambda c: c}
        options = {"num_groups": number} if norm == "gn" else {}
        regroup = None
        if "num_groups" in NORMS[norm].options:

            def regroup(channels: int, count: int) -> nn.Module:
                return build_norm(norm, channels, num_groups=count)

        return Subject(
            label=norm,
            build=lambda c: build_norm(norm, c, **options),
            groups=fixed.get(norm),
            regroup=regroup,
            reference=norm,
            **data,
            **more,
        )
    number = groups or 8
    return Subject(
        label=norm.__name__,
        build=lambda c: norm(c, groups=number),
        groups=lambda c: number,
        regroup=lambda c, count: norm(c, groups=count),
        reference="gn",
        **data,
        **more,
    )


class Result:
    """Findings by statement, and points, of one claim on one norm."""

    def __init__(self, findings: Iterable[Finding], points: Iterable[Point]) -> None:
        self.rows, self.points = {f.statement: f for f in findings}, [*points]

    def __getitem__(self, statement: str) -> Finding:
        return self.rows[statement]

    def verdicts(self, *statements: str) -> list[str]:
        """The verdicts on these statements, on all if none is named."""
        return [self.rows[statement].verdict for statement in statements or self.rows]

    def line(self, panel: str, series: str) -> dict[float, float]:
        """One line of a figure: x -> y."""
        return {p.x: p.y for p in self.points if (p.panel, p.series) == (panel, series)}


# What makes a claim on networks quick, and leaves its statements as they are.
QUICK = {
    "flow": [(gradient_by_depth, "DEPTHS", (8,))],
    "train_test": [(train_vs_eval, "SIZES", (1, 4, 64))],
    "invariance": [(trained_networks, "TRAIN_IMAGES", 64), (trained_networks, "TEST_IMAGES", 20)],
    "isolation": [(isolation, name, (2, 8)) for name in ("GRADIENT_BATCHES", "OUTPUT_BATCHES")],
    "initialization": [
        *((initialization, name, value) for name, value in (("DEPTHS", (20,)), ("GAMMAS", (1, 2)))),
        (initialization, "DEPTH_OF_GAMMAS", 20),
        (initialization, "first_updates", lambda subject: ()),  # tested by itself
    ],
}
QUICK["isolation"].append((isolation, "PIXELS", 8))


def check(claim: str, of: Subject) -> Result:
    """Measure a claim with what makes it quick."""
    with pytest.MonkeyPatch.context() as patch:
        for change in QUICK.get(claim, []):
            patch.setattr(*change)
        return Result(*measure_claim(claim, of))


@functools.cache
def checked(claim: str, norm: str | type[nn.Module], draws: int = 4, **more: object) -> Result:
    """Measure a claim on a norm of the table, a broken one by its name, or a class; once."""
    return check(claim, subject(BROKEN.get(norm, norm), draws=draws, **more))
