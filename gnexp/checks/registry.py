"""The claims of the article, one line each; a claim's module is imported when it is measured."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnexp.checks.finding import Finding, Point
    from gnexp.checks.subject import Subject


@dataclass(frozen=True)
class Claim:
    """A claim: its number, the module that measures it, its title, and the article's section.

    main: the statements that stand for it in the summary. networks: whether it is measured on
    whole networks, which takes seconds.
    """

    number: int
    key: str
    title: str
    section: str
    main: tuple[str, ...]
    networks: bool = False


CLAIMS = {
    claim.key: claim
    for claim in (
        Claim(
            *(1, "core", "Core mechanism", "The core mechanism"),
            main=("standardized", "eps", "affine", "forward", "backward"),
        ),
        Claim(
            *(2, "spectrum", "Spectrum from LN to IN", "A unified view"),
            main=("one_group_forward", "c_groups_forward", "to_ln", "to_in"),
        ),
        Claim(
            *(3, "batch_independence", "Batch independence", "Property 1"),
            main=("all_mates_output", "all_mates_gradient", "batch_size_output"),
        ),
        Claim(
            *(4, "train_test", "Train-test equivalence", "Property 2"),
            main=("same_computation", "no_running_state", "shift"),
        ),
        Claim(
            *(5, "invariance", "Invariance", "Property 3"),
            main=("unchanged_group", "unchanged_channel", "unchanged_batch_channel")
            + ("eps_predicts", "network_scale", "trained_contrast"),
            networks=True,
        ),
        Claim(
            *(6, "geometry", "Geometry", "Geometric interpretation"),
            main=("radius", "lost", "sum_of_outputs", "sum_per_channel", "few_values_1"),
        ),
        Claim(
            *(7, "flow", "Gradient flow", "Training dynamics 1"),
            main=("self_regulating", "batch_size", "weights_whole", "weights_filter")
            + ("depth_resnet", "depth_plain"),
            networks=True,
        ),
        Claim(
            *(8, "stability", "Stable gradients", "Training dynamics 1"),
            main=("channels", "pixels", "batch", "network_noise_gamma", "network_relative_gamma"),
            networks=True,
        ),
        Claim(
            *(9, "isolation", "Information isolation", "Training dynamics 2"),
            main=("jacobian", "losses", "bound", "noise"),
            networks=True,
        ),
        Claim(
            *(10, "initialization", "Initialization", "Initialization in ResNets"),
            main=("growth", "growth_post_activation", "identity", "identity_post_activation")
            + ("first_updates", "first_updates_fast"),
            networks=True,
        ),
    )
}


# A name that ends in _test would be taken for a file of tests.
MODULES = {"train_test": "train_vs_eval"}


def measure_claim(key: str, subject: "Subject") -> "tuple[list[Finding], list[Point]]":
    """Measure one claim; raises NormError for a norm that does what no layer may do.

    A layer that draws random numbers itself gets the same ones each time; the global random state
    is left as it was.
    """
    import torch

    from gnexp.checks.finding import Finding, Point
    from gnexp.data.seeding import derived_seed

    module = import_module(f"gnexp.checks.claims.{MODULES.get(key, key)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(subject.seed, f"passport {key}"))
        found = list(module.measure(subject))
    return tuple([each for each in found if isinstance(each, kind)] for kind in (Finding, Point))
