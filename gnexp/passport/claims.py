"""The claims of the article, one line each; a claim's module is imported when it is measured."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnexp.passport.finding import Measured
    from gnexp.passport.subject import Subject


@dataclass(frozen=True)
class Claim:
    """A claim: its number, the module that measures it, its title, and the article's section."""

    number: int
    key: str
    title: str
    section: str
    networks: bool = False  # measured on whole networks, which takes seconds


CLAIMS = {
    claim.key: claim
    for claim in (
        Claim(1, "core", "Core mechanism", "The core mechanism"),
        Claim(2, "spectrum", "Spectrum from LN to IN", "A unified view"),
        Claim(3, "batch_independence", "Batch independence", "Property 1"),
        Claim(4, "train_test", "Train-test equivalence", "Property 2"),
        Claim(5, "invariance", "Invariance", "Property 3"),
        Claim(6, "geometry", "Geometry", "Geometric interpretation"),
        Claim(7, "flow", "Gradient flow", "Training dynamics 1", networks=True),
        Claim(8, "stability", "Stable gradients", "Training dynamics 1", networks=True),
        Claim(9, "isolation", "Information isolation", "Training dynamics 2", networks=True),
        Claim(10, "initialization", "Initialization", "Initialization in ResNets", networks=True),
    )
}


def measure_claim(key: str, subject: "Subject") -> "Measured":
    """Measure one claim; raises Misbehaved for a norm that does what no layer may do.

    A layer that draws random numbers itself gets the same ones each time; the global random state
    is left as it was.
    """
    import torch

    from gnexp.seeding import derived_seed

    module = import_module(f"gnexp.passport.{key}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(subject.seed, f"passport {key}"))
        return module.measure(subject)
