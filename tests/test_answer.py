"""The answer says what synthetic studies of known truth hold, and no more."""

import re

import numpy as np
import pytest
from evidence_series import draw, make_series

from gnexp.study.answer import answer
from gnexp.study.comparisons import settings

BN = {1: 30, 2: 66, 4: 75, 16: 80, 64: 80}
FLAT = dict.fromkeys(BN, 78)


def bn(means=BN, **options):
    return make_series("bn", draw(means, seed=1, **options))


def gn(means=FLAT, groups=8, seed=2, **options):
    return make_series("gn", draw(means, seed=seed, **options), groups=groups)


def told(*lines):
    sentences = answer(lines, 32)
    assert 1 <= len(sentences) <= 2
    for sentence in sentences:
        assert sentence.isascii()
        assert sentence.endswith(".")
        assert "nan" not in sentence
        assert not re.search(r"\.\.|;;|  |\( ", sentence)
    return sentences


def test_a_crossing_names_both_winners_where_they_win():
    first, second = told(bn(), gn())
    assert first.startswith("Up to batch 4, use GN with 8 groups: +")
    assert "over BN at batch 1 (95 % interval " in first
    assert "n = 5" in first
    assert second.startswith("From batch 16 up, use BN: it leads GN with 8 groups by ")
    assert "simultaneous over 5 comparisons with BN (Holm)" in second


def test_the_numbers_are_those_of_the_simultaneous_interval():
    lines = [bn(), gn()]
    one = settings(lines)[0].pairs[0][1][0]
    first, _ = answer(lines, 32)
    lo, hi = f"{100 * one.adjusted.lo:.1f}", f"{100 * one.adjusted.hi:.1f}"
    assert f"+{100 * one.difference.difference:.1f} points" in first
    assert f"(95 % interval {lo} to {hi}, n = 5)" in first


def test_a_clear_winner_is_used_everywhere():
    first, _ = told(bn(), gn(dict.fromkeys(BN, 90)))
    assert first.startswith("At every batch size compared (1, 2, 4, 16 and 64), use GN with 8")
    first, _ = told(bn(), gn(dict.fromkeys(BN, 20)))
    assert "use BN: it leads GN with 8 groups by" in first


def test_a_tie_is_not_decided_and_says_how_many_seeds_would():
    first, second = told(bn(FLAT, sd=1.0), gn(sd=1.0))
    assert first.startswith("The data do not decide between GN with 8 groups and BN at batch 1, 2")
    assert re.search(r"About \d+ seeds of each would narrow", second)


def test_a_lead_that_is_not_there_is_claimed_in_at_most_5_percent_of_studies():
    claims = 0
    for seed in range(300):
        values = draw(FLAT, sd=1.0, seed=[seed, 1])
        first = answer([make_series("bn", values), gn(sd=1.0, seed=[seed, 2])], 32)[0]
        claims += not first.startswith("The data do not decide")
    assert claims <= 300 * 0.05 + 3.5 * np.sqrt(300 * 0.05 * 0.95)


def test_batch_sizes_between_the_winners_stay_open():
    _, second = told(bn({1: 30, 4: 78, 16: 80, 64: 81}), gn({1: 78, 4: 78, 16: 80, 64: 78}))
    assert "at batch 4 and 16 the data do not decide between them" in second


def test_one_seed_decides_nothing():
    first, second = told(bn(n=1), gn(n=1))
    assert first.startswith("One seed does not decide between GN with 8 groups and BN")
    assert "n = 1 and 1" in first
    assert "seeds=5" in second


def test_norms_without_a_batch_size_in_common_are_not_compared():
    (first,) = told(bn({16: 80, 64: 80}), gn({1: 78, 2: 78}))
    assert first.startswith("Nothing can be compared: BN was trained at batch 16 and 64 and GN")
    assert "train BN at batch 1 and 2 too" in first


def test_missing_cells_are_named():
    _, second = told(bn({2: 60, 64: 80}), gn({1: 78, 2: 78, 64: 77}))
    assert "BN is missing at batch 1" in second


def test_a_study_that_diverged_everywhere_has_no_winner():
    lost = {1: [None] * 3, 2: [None] * 3}
    (first,) = told(make_series("bn", lost), make_series("gn", lost, groups=8))
    assert first.startswith("Every seed of GN with 8 groups and BN diverged at batch 1 and 2")


def test_a_bn_that_diverged_is_at_chance_and_said_to_have_diverged():
    first, _ = told(make_series("bn", {1: [None] * 5, 2: draw({2: 60})[2]}), gn({1: 78, 2: 78}))
    assert "BN diverged in 5 of 5, counted at chance" in first
    assert "+68" in first or "+67" in first


def test_several_crossings_are_listed_and_not_smoothed():
    first, _ = told(bn(FLAT), gn({1: 90, 2: 60, 4: 90, 16: 60, 64: 60}))
    assert first.startswith("The lead changes more than once: GN with 8 groups leads BN at batch 1")
    assert "BN leads it at batch 2, 16 and 64" in first


def test_without_bn_the_best_is_compared_with_the_others():
    ln = make_series("ln", draw(dict.fromkeys(BN, 60), seed=3))
    first, second = told(ln, gn())
    assert first.startswith("BN was not trained; at batch 1 GN with 8 groups has the highest mean")
    assert re.search(r"\+1[78]\.\d points over LN \(95 % interval", first)
    assert "only pair" in second


def test_without_bn_norms_that_cannot_be_told_apart_are_named():
    first, second = told(gn(sd=1.0), gn(groups=16, seed=3, sd=1.0))
    assert first.startswith("BN was not trained")
    assert "cannot be told from it" in second


def test_the_best_of_several_norms_is_named_with_its_groups_and_its_equals():
    lines = [gn(groups=8), gn(dict.fromkeys(BN, 79), groups=16, seed=3)]
    lines += [make_series("ln", draw(dict.fromkeys(BN, 60), seed=4)), bn()]
    first, second = told(*lines)
    assert first.startswith("Up to batch 4, use GN with 16 groups")
    assert "GN with 16 groups has the highest mean at batch 1 of the 3 compared with BN" in second


def test_bn_is_not_called_the_one_to_use_where_another_norm_beats_it():
    other = make_series("none", draw({1: 10, 2: 10, 4: 10, 16: 90, 64: 90}, seed=5))
    _, second = told(bn(), gn(), other)
    assert "use BN" not in second
    assert "none (no normalization) leads BN at batch 16 and 64" in second


def test_one_norm_alone_is_said_to_be_alone_with_what_the_small_batch_costs():
    first, second = told(bn({1: 30, 32: 80}))
    assert first.startswith("Only BN was trained; train other norms at batch 1 and 32")
    assert second.startswith("From batch 32 to 1 it loses accuracy: -50")


def test_of_several_settings_the_largest_is_answered_and_the_rest_announced():
    small = [
        make_series(n, draw({2: 50}, seed=i), model="tiny") for i, n in enumerate(("bn", "ln"))
    ]
    large = [
        make_series("bn", draw(BN, seed=1), model="resnet8"),
        make_series("gn", draw(FLAT, seed=2), groups=8, model="resnet8"),
    ]
    first, _ = told(*small, *large)
    assert first.startswith(
        "With model resnet8 (1 of 2 settings, all in the tables): Up to batch 4"
    )


@pytest.mark.parametrize("lines", [[], [make_series("bn", {})]])
def test_an_empty_study_has_no_answer_yet(lines):
    assert answer(lines, 32) == ["No seed is finished yet."]
