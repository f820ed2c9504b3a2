"""The record of a conversion: every normalization layer that was replaced or left, and why."""

from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Replaced:
    """One layer that was replaced.

    name: its place in the model; `also` are the others of a layer that is used in several. within:
    where the new layer is, under `name`, when it stands in a wrapper ("norm"), "" if it does not.
    affine: "kept" (gamma and beta copied) or "reset" (they start anew), with the one that both
    layers have where it is alone, or "absent" (there is neither). activation: what became of the
    activation, "" where the norm does not concern it.
    changed: options that differ, as "eps 0.001 -> 1e-05".
    """

    name: str
    old: str
    new: str
    channels: int
    affine: str
    activation: str = ""
    changed: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    within: str = ""

    def __str__(self) -> str:
        words = [f"{self.name or '(the model)'}: {self.old} -> {self.new}"]
        words += [f"{self.channels} channels", f"affine {self.affine}", *self.changed]
        words += [self.activation] if self.activation else []
        words += [f"wrapped, as {self.name}.{self.within}"] if self.within else []
        words += [f"also at {', '.join(self.also)}"] if self.also else []
        return ", ".join(words)


@dataclass(frozen=True)
class Left:
    """One layer that was left as it is, and why."""

    name: str
    old: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name or '(the model)'}: {self.old} left, since {self.reason}"


@dataclass(frozen=True)
class Conversion:
    """A converted model and the report: `str(conversion)` is one line for each layer.

    notes: what holds for the model as a whole.
    """

    model: nn.Module
    replaced: list[Replaced]
    left: list[Left]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{len(self.replaced)} normalization layers replaced, {len(self.left)} left"
        return "\n".join([head, *map(str, self.replaced), *map(str, self.left), *self.notes])
