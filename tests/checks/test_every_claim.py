"""All claims: their statements, their words, the random state, and norms broken on purpose."""

import pytest
import torch
from norms_under_test import BROKEN, Dithers, NoAffine, Own, check, checked, subject
from torch import nn

from gnexp.checks.finding import Statement, vacuous
from gnexp.checks.registry import CLAIMS
from gnexp.checks.verdicts import FAILS, HOLDS, NOT_MEASURED, UNDECIDED, VACUOUS, inside

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


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_norm_gets_the_same_statements_in_the_same_words(claim):
    norms = ["bn", "gn", "none"]
    norms += [NoAffine] if claim not in ("initialization", "stability") else []
    results = [checked(claim, norm, channels=32) for norm in norms]
    said = [[(f.statement, f.text) for f in result.rows.values()] for result in results]
    assert all(each == said[0] for each in said)
    assert len(results[0].rows) == len(said[0]) >= 4
    for finding in (f for result in results for f in result.rows.values()):
        assert str(finding).isascii()
        assert all((finding.what, finding.expected, finding.measured))
        assert finding.verdict.startswith((HOLDS, FAILS, UNDECIDED, NOT_MEASURED))
        assert "{" not in str(finding).replace("Finding(", "")
    assert set(CLAIMS[claim].main) <= {*results[0].rows, "first_updates", "first_updates_fast"}


@pytest.mark.parametrize(
    "claim", ["core", "spectrum", "batch_independence", "train_test", "geometry"]
)
def test_a_layer_that_draws_gets_the_same_numbers_and_leaves_the_global_state_alone(claim):
    before = torch.get_rng_state()
    first, second = (check(claim, subject(Dithers, draws=2, channels=16)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert str(first.rows) == str(second.rows)  # nan is not equal to nan
    assert str(first.points) == str(second.points)


def verdicts(norm: str | type[nn.Module], claim: str) -> dict[str, str]:
    rows = checked(claim, norm, draws=16 if claim == "batch_independence" else 4).rows
    return {statement: finding.verdict for statement, finding in rows.items()}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_norm_fails_where_it_is_broken_and_the_sound_one_does_not(name):
    for claim, statements in DEFECTS[name][0].items():
        sound, broken = verdicts(Own, claim), verdicts(name, claim)
        assert {sound[statement] for statement in statements} == {HOLDS}
        assert HOLDS not in {broken[statement] for statement in statements}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_norm_is_not_accused_of_what_it_does_right(name):
    for claim in DEFECTS[name][1]:
        kinds = [
            {statement: verdict.partition(" when ")[0] for statement, verdict in found.items()}
            for found in (verdicts(name, claim), verdicts(Own, claim))
        ]
        assert kinds[0] == kinds[1]


def test_a_number_is_held_against_bounds_and_an_interval_must_lie_within_them():
    row = Statement("key", "text of {of}", "what", low=-1, high=1)
    found = row.found(0.5, of="one")
    assert (found.text, found.measured, found.tolerance) == ("text of one", "0.5", "1")
    assert found.verdict == HOLDS
    assert row.found(1.5, of="").verdict == row.found(float("nan"), of="").verdict == FAILS
    assert row.found(0.5, 0, 1, of="").verdict == HOLDS
    assert row.found(0.5, 0, 2, of="").verdict == UNDECIDED
    assert row.found(2.5, 2, 3, of="").verdict == FAILS
    assert row.found(0.5, float("nan"), 1, of="").verdict == UNDECIDED
    assert row.found(2, of="", high=3, note="own").verdict == HOLDS
    assert inside(-3, -2, -1, 1) == FAILS
    assert vacuous(found).verdict == VACUOUS
    assert "there is no statistic" in vacuous(found).note
    assert vacuous(row.found(2, of="")).note == ""
