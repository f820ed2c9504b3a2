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
    assert re.search(r"(\d+ to|More than) .*seeds of each would", second)


def test_a_lead_that_is_not_there_is_claimed_in_at_most_5_percent_of_studies():
    claims = 0
    for seed in range(300):
        values = draw(FLAT, sd=1.0, seed=[seed, 1])
        first = answer([make_series("bn", values), gn(sd=1.0, seed=[seed, 2])], 32)[0]
        claims += not first.startswith("The data do not decide")
    assert claims <= 300 * 0.05 + 3.5 * np.sqrt(300 * 0.05 * 0.95)


def test_of_six_equal_norms_any_lead_is_claimed_in_at_most_5_percent_of_studies():
    claims = 0
    for seed in range(200):
        rng = np.random.default_rng([seed, 6])
        lines = [
            make_series(norm, {b: list(rng.normal(80, 1, 4)) for b in (1, 8, 64)})
            for norm in ("bn", "gn", "ln", "in", "none", "own")
        ]
        text = " ".join(answer(lines, 32))
        claims += any(word in text for word in ("lead", "use ", "higher"))
    assert claims <= 200 * 0.05 + 2 * np.sqrt(200 * 0.05 * 0.95)


def test_the_intervals_are_said_to_be_simultaneous_over_all_norms_and_batch_sizes():
    _, second = told(bn(), gn(), make_series("ln", draw(FLAT, seed=3)))
    assert "simultaneous over 10 comparisons with BN (Holm)" in second
    one_batch = [make_series(n, draw({2: m}, seed=m)) for n, m in (("bn", 70), ("ln", 75))]
    assert "the only comparison with BN" in told(*one_batch)[1]
    one_batch.append(make_series("in", draw({2: 60}, seed=60)))
    assert "over 2 comparisons with BN" in told(*one_batch)[1]


SMALL_BN = {1: 40, 8: 60, 32: 60}
SMALL_IN = {1: 78.6, 8: 70, 32: 65}
SMALL_GN = {1: 78, 8: 79, 32: 79}


@pytest.mark.parametrize("at_1", [78.6, 78.0])
def test_a_norm_is_not_the_one_to_use_where_another_is_decidedly_above_it(at_1):
    other = make_series("in", draw(SMALL_IN | {1: at_1}, seed=5))
    first, second = told(bn(SMALL_BN), gn(SMALL_GN), other)
    if at_1 == 78.6:
        assert first.startswith("At batch 1, use IN: +")
        assert second.startswith("From batch 8 up, use GN with 8 groups: +")
    else:  # told apart at batch 8 and 32 alone
        assert first.startswith("At every batch size compared (1, 8 and 32), use GN with 8 groups")
        assert first.endswith(", but IN cannot be told from it throughout.")
        assert "use IN" not in second


def test_every_other_norm_is_said_to_be_led_only_where_each_was_compared():
    ln = make_series("ln", draw({1: 78, 2: 78}, seed=3))
    _, second = told(bn(), gn(), ln)
    assert "every other norm" not in second
    assert "it leads GN with 8 groups by" in second
    assert "LN was trained only at batch 1 and 2" in second
    _, second = told(bn(), gn(), make_series("ln", draw(FLAT, seed=3)))
    assert "it leads every other norm, GN with 8 groups by" in second
    assert "LN" not in second
    third = make_series("in", draw(dict.fromkeys(BN, 20), seed=4))
    _, second = told(bn(), gn(), ln, third)
    assert re.search(r"it leads GN with 8 groups by [^;]*\), and IN;", second)


def test_a_norm_that_bn_does_not_lead_at_one_batch_of_the_stretch_is_named():
    ln = make_series("ln", draw(FLAT | {16: 80, 64: 60}, seed=3))
    _, second = told(bn(), gn(), ln)
    assert "every other norm" not in second
    assert "but LN cannot be told from it throughout" in second


def test_a_norm_with_one_seed_is_named_and_not_counted_among_those_compared():
    ln = make_series("ln", {16: [90.0], 64: [90.0]})
    _, second = told(bn({16: 80, 64: 80}), gn({16: 70, 64: 70}), ln)
    assert "LN was trained with one seed and is not compared" in second
    assert "every other norm" not in second
    mixed = make_series("ln", {16: [90.0], **draw({64: 70}, seed=3)})
    _, second = told(bn({16: 80, 64: 80}), gn({16: 70, 64: 70}), mixed)
    assert "LN has one seed at batch 16 and is not compared there" in second
    assert "every other norm" not in second


def test_a_tie_of_several_norms_names_them_all_and_those_that_bn_leads():
    lines = [make_series(n, draw(FLAT, seed=i)) for i, n in enumerate(("bn", "ln", "in"))]
    first, second = told(*lines, gn(FLAT | {64: 77.9}, seed=8))
    assert re.search(r"decide between [^:]*, [^:]* and BN at batch 1, 2, 4, 16 and 64", first)
    for name in ("LN", "IN", "GN with 8 groups"):
        assert name in first
    behind = make_series("none", draw(dict.fromkeys(BN, 40), seed=9))
    first, second = told(*lines, behind)
    assert "none" not in first
    assert "BN leads none (no normalization) at batch 1, 2, 4, 16 and 64" in second


def test_whose_learning_rate_was_not_tuned_is_said_where_others_were():
    def lines(of_bn, of_gn):
        ours = draw(BN, seed=1), draw(FLAT, seed=2)
        return make_series("bn", ours[0], tuned=of_bn), make_series("gn", ours[1], tuned=of_gn)

    for same in (None, True, False):
        assert "tuned" not in " ".join(told(*lines(same, same)))
    first, second = told(*lines(False, True))
    assert first.startswith("Up to batch 4, use GN: +")
    assert second.endswith("; the rate of BN was not tuned.")
    ln = make_series("ln", draw(FLAT, seed=3), tuned=False)
    assert told(*lines(False, True), ln)[1].endswith("; the rates of BN and LN were not tuned.")
    partly = {1: True, 2: True, 4: True, 16: True, 64: False}
    assert told(*lines(True, partly))[1].endswith("; the rate of GN was not tuned at batch 64.")


def test_a_label_that_tells_the_tuned_from_the_untuned_is_not_the_norms_name():
    line = gn()
    line.label = "GN(8), lr=tuned, tuned=True"
    assert told(bn(), line)[0].startswith("Up to batch 4, use GN with 8 groups: +")


def test_without_bn_a_norm_with_one_seed_is_not_called_alike():
    _, second = told(gn(), make_series("ln", draw(FLAT, seed=3)), make_series("in", {1: [20.0]}))
    assert "IN cannot be compared with it (one seed)" in second
    assert "IN was trained only at batch 1" in second


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
    assert "and BN leads it at batch 2, 16 and 64" in first


def test_without_bn_the_best_is_compared_with_the_others():
    ln = make_series("ln", draw(dict.fromkeys(BN, 60), seed=3))
    first, second = told(ln, gn())
    assert first.startswith("BN was not trained; at batch 1 GN with 8 groups has the highest mean")
    assert re.search(r"\+1[78]\.\d points over LN \(95 % interval", first)
    assert "only pair" in second


def test_a_bn_that_was_trained_but_not_tuned_is_not_said_to_be_untrained():
    lines = [make_series("ln", draw(BN, seed=3), lr="tuned", tuned=True)]
    lines += [make_series("gn", draw(FLAT, seed=4), lr="tuned", tuned=True)]
    lines += [make_series("bn", draw({1: 40}, seed=i), lr=i, tuned=False) for i in (1, 2)]
    first = answer(lines, 32)[0]
    assert first.startswith("With lr tuned (1 of 3 settings, all in the tables): BN was not tuned;")


def test_without_bn_norms_that_cannot_be_told_apart_are_named():
    first, second = told(gn(sd=1.0), gn(groups=16, seed=3, sd=1.0))
    assert first.startswith("BN was not trained")
    assert "cannot be told from it" in second


def test_the_best_of_several_norms_is_named_with_its_groups_and_its_equals():
    lines = [gn(groups=8), gn(dict.fromkeys(BN, 78.3), groups=16, seed=3)]
    lines += [make_series("ln", draw(dict.fromkeys(BN, 60), seed=4)), bn()]
    first, second = told(*lines)
    assert first.startswith("Up to batch 4, use GN with 16 groups")
    assert first.endswith(", but GN with 8 groups cannot be told from it.")
    assert "use BN: it leads every other norm, GN with 16 groups by" in second


def test_bn_is_not_called_the_one_to_use_where_another_norm_beats_it():
    other = make_series("none", draw({1: 10, 2: 10, 4: 10, 16: 90, 64: 90}, seed=5))
    _, second = told(bn(), gn(), other)
    assert "use BN" not in second
    assert "From batch 16 up, use none (no normalization): +10" in second


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
