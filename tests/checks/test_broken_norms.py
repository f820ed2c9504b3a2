"""Norms that are broken on purpose: each is caught by the claim it breaks, and by no claim else."""

import functools

import pytest
from norms_under_test import BROKEN, Own, subject

from gnexp.checks.finding import HOLDS
from gnexp.checks.registry import measure_claim

# What a broken norm must fail, and claims that have nothing to do with its defect.
DEFECTS = {
    "peeks": (
        {
            "batch_independence": {"one_mate_output", "all_mates_gradient", "batch_size_output"},
            "isolation": {"layer", "jacobian", "bound", "noise"},
        },
        {"train_test"},
    ),
    "forgets eps": ({"core": {"eps", "constant"}}, {"batch_independence", "train_test"}),
    "wrong groups": (
        {"core": {"standardized", "forward", "backward"}, "geometry": {"lost"}},
        {"batch_independence", "train_test"},
    ),
    "almost invariant": (
        {"invariance": {"unchanged_group", "eps_predicts", "network_scale"}},
        {"batch_independence", "isolation"},
    ),
}


@functools.cache
def verdicts(norm: type, claim: str) -> dict[str, str]:
    measured = measure_claim(claim, subject(norm, draws=16))
    return {finding.statement: finding.verdict for finding in measured.findings}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_norm_fails_where_it_is_broken_and_the_sound_one_does_not(name):
    for claim, statements in DEFECTS[name][0].items():
        sound, broken = verdicts(Own, claim), verdicts(BROKEN[name], claim)
        assert set(sound) == set(broken)
        for statement in statements:
            assert sound[statement] == HOLDS, (claim, statement)
            assert broken[statement] != HOLDS, (claim, statement)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_norm_is_not_accused_of_what_it_does_right(name):
    for claim in DEFECTS[name][1]:
        kinds = [
            {statement: verdict.partition(" when ")[0] for statement, verdict in found.items()}
            for found in (verdicts(BROKEN[name], claim), verdicts(Own, claim))
        ]
        assert kinds[0] == kinds[1]
