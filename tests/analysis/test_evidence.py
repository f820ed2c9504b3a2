"""The tables behind the answer hold what was put in, and their intervals cover."""

import math

import numpy as np
import pytest
from evidence_series import analysis_of, draw, make_series
from scipy import stats

from gnexp.analysis.break_even import break_even
from gnexp.analysis.comparisons import settings
from gnexp.analysis.tables.build import build_tables

NORM_TABLES = ("norm_comparisons", "norm_pairs", "break_even", "robustness")
KEY = ("norm", "groups", "batch", "update_batch")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
NORMS = ("bn", "gn", "ln")


def tables(*lines):
    found = build_tables(analysis_of(lines))
    return {name: found[name] for name in NORM_TABLES}


def crossing(differences, sd=0.05, n=5):
    """Return the break-even of a norm whose mean differs from BN's by exactly these points."""
    bn = make_series("bn", {batch: [80.0] * n for batch in differences})
    scatter = (0 if n == 1 else sd) * np.array([1.0, -2.0, 2.0, 0.0, -1.0])[:n]
    gn = make_series("gn", {b: list(80 + d + scatter) for b, d in differences.items()}, groups=8)
    (setting,) = settings([bn, gn])
    return break_even(setting.pairs[0][1])


def test_norms_are_compared_with_bn_batch_by_batch_all_in_one_family():
    bn = make_series("bn", draw({1: 60, 2: 75, 32: 80}, seed=1))
    gn = make_series("gn", draw({1: 78, 2: 78, 32: 79, 64: 79}, seed=2), groups=8)
    table = tables(bn, gn, make_series("ln", draw({2: 74.6, 32: 80}, seed=3)))["norm_comparisons"]
    rows = table.rows
    assert [(r["norm"], r["batch"], r["family"]) for r in rows] == [
        *(("gn", 1, 5), ("gn", 2, 5), ("gn", 32, 5), ("ln", 2, 5), ("ln", 32, 5))
    ]
    assert "Family 'norm against BN'" in table.caption
    # Holm by hand over all five.
    steps = [(5 - i) * p for i, p in enumerate(sorted(r["p"] for r in rows))]
    holm = np.minimum(1, np.maximum.accumulate(steps))
    assert sorted(r["p_holm"] for r in rows) == pytest.approx(holm, rel=1e-9)
    welch = stats.ttest_ind(gn.cells[1].accuracies, bn.cells[1].accuracies, equal_var=False)
    assert rows[1]["welch_p"] == pytest.approx(welch.pvalue, rel=1e-9)
    assert rows[0]["verdict"] == "ahead"


def test_the_other_pairs_of_norms_are_a_family_of_their_own_that_the_answer_is_made_from():
    lines = [make_series("bn", draw({2: 75, 32: 80}, seed=1), test=0)]
    lines += [
        make_series(norm, draw({2: level, 32: level}, seed=seed), test=0)
        for seed, (norm, level) in enumerate({"gn": 78, "ln": 76, "in": 70}.items(), 5)
    ]
    rows = tables(*lines)["norm_pairs"].rows
    assert len(rows) == 6
    assert {(r["norm"], r["against"]) for r in rows} == {
        *(("gn", "LN"), ("gn", "IN"), ("ln", "IN"))
    }
    assert {r["family"] for r in rows} == {6}
    steps = [(6 - i) * p for i, p in enumerate(sorted(r["p"] for r in rows))]
    holm = np.minimum(1, np.maximum.accumulate(steps))
    assert sorted(r["p_holm"] for r in rows) == pytest.approx(holm, rel=1e-9)
    row = next(r for r in rows if (r["norm"], r["against"], r["batch"]) == ("gn", "IN", 2))
    a, b = lines[1].cells[0].accuracies, lines[3].cells[0].accuracies
    assert row["difference"] == pytest.approx(np.mean(a) - np.mean(b), rel=1e-9)
    assert row["verdict"] == "ahead"


def test_series_that_differ_in_more_than_the_norm_are_not_compared_and_are_families_apart():
    levels = {"resnet8": {"bn": 75, "ln": 76}, "resnet20": {"bn": 70, "ln": 78, "in": 71}}
    lines = [
        make_series(norm, draw({2: level}), model=model)
        for model, norms in levels.items()
        for norm, level in norms.items()
    ]
    rows = tables(*lines)["norm_comparisons"].rows
    assert [(r["model"], r["norm"], r["family"]) for r in rows] == [
        *(("resnet8", "ln", 1), ("resnet20", "ln", 2), ("resnet20", "in", 2))
    ]
    assert [r["difference"] for r in rows] == pytest.approx([0.01, 0.08, 0.01], abs=0.005)


def test_a_tuned_norm_meets_an_untuned_one_and_the_table_says_so():
    bn = make_series("bn", draw({1: 60, 2: 75}, seed=1), tuned=False)
    gn = make_series("gn", draw({1: 70, 2: 76}, seed=2), groups=8, tuned={1: True, 2: False})
    one, other = tables(bn, gn)["norm_comparisons"].rows
    assert (one["note"], other["note"]) == ("the rate of BN was not tuned", "")
    split = [make_series("bn", draw({2: 75})), make_series("gn", draw({2: 78}, seed=1))]
    for line, tuned in zip(split, (True, False)):
        line.key["tuned"] = tuned  # where a series' key holds it too
    assert len(settings(split)) == 1
    assert "tuned" not in settings(split)[0].key


def test_a_rate_that_tells_series_apart_does_not_keep_the_tuned_from_the_untuned():
    def line(norm, lr, tuned, seed, model="resnet8"):
        made = make_series(norm, draw({2: 75}, seed=seed), lr=lr, model=model, tuned=tuned)
        made.key["tuned"] = tuned
        return made

    lines = [line("bn", 0.1, False, 1), line("gn", "tuned", True, 2)]
    lines += [line(n, "tuned", True, i, "resnet20") for i, n in ((3, "bn"), (4, "gn"))]
    found = settings(lines)
    assert [[one.norm for one in setting.lines] for setting in found] == [["bn", "gn"]] * 2
    assert [setting.key["model"] for setting in found] == ["resnet8", "resnet20"]
    assert "lr" not in found[0].key
    swept = settings([*lines[:2], line("bn", 0.2, False, 5)])  # compared with which BN?
    assert [len(setting.lines) for setting in swept] == [1, 1, 1]


def test_bn_as_it_comes_is_the_one_compared_with():
    momentum = "norm.momentum_rule"
    own = make_series("bn", draw({2: 77}), **{momentum: "examples"})
    bn = make_series("bn", draw({2: 75}, seed=1), **{momentum: "batches"})
    (row,) = tables(own, bn)["norm_comparisons"].rows
    assert row["difference"] == pytest.approx(0.02, abs=0.01)


def test_a_diverged_seed_counts_at_chance():
    bn = make_series("bn", {1: [70.0, 60.0, None]})
    gn = make_series("gn", {1: [71.0, 62.0, 80.0]}, groups=8)
    (row,) = tables(bn, gn)["norm_comparisons"].rows
    assert row["difference"] == pytest.approx((0.01 + 0.02 + 0.70) / 3)
    assert (row["n_a"], row["n_diverged"], row["n_diverged_against"]) == (3, 0, 1)


def test_the_break_even_batch_is_where_the_mean_difference_crosses_0():
    # By hand: from +2 at batch 4 to -2 at 16, linear in log2, crosses 0 at 8.
    even = crossing({1: 10, 2: 6, 4: 2, 16: -2, 64: -2.5})
    assert even["kind"] == "crossing"
    assert even["batch"] == pytest.approx(8, rel=1e-9)
    assert 4 < even["lo"] < even["batch"] < even["hi"] < 16


def test_the_range_of_the_break_even_holds_the_batch_sizes_that_are_undecided():
    even = crossing({1: 10, 2: 5, 4: 0.05, 8: -0.05, 16: -5})
    assert even["kind"] == "crossing"
    assert 2 < even["lo"] < 4
    assert 8 < even["hi"] < 16


@pytest.mark.parametrize(
    ("differences", "text"),
    [
        ({1: 9, 2: 5, 64: 2}, "none in range: the norm leads"),
        ({1: -9, 2: -5, 64: -2}, "none in range: BN leads"),
        ({1: 9, 2: 5, 64: 0.06}, "above 64"),
        ({1: -0.06, 2: -5, 64: -9}, "below 1"),
        ({1: 9, 2: -5, 4: 5, 64: -3}, "several"),
        ({1: 0.01, 2: -0.01, 64: 0.02}, "undecided"),
        ({1: 9}, "not tested"),  # of one seed
    ],
)
def test_a_break_even_out_of_range_or_more_than_one_is_said_so(differences, text):
    even = crossing(differences, n=1 if text == "not tested" else 5)
    assert even["break_even"] == text
    assert math.isnan(even["batch"])


def test_an_open_end_in_which_the_mean_changes_sign_is_a_crossing_without_that_end():
    even = crossing({1: 9, 2: 5, 4: 2, 64: -0.06}, sd=0.1)
    assert even["kind"] == "crossing"
    assert even["hi"] == math.inf
    assert even["break_even"].endswith("to above 64)")


def test_losses_are_welchs_in_a_small_setting_and_the_slope_per_halving_is_that_of_each_seed():
    values = {1: [50.0, 52.0, 51.0], 2: [60.0, 61.0, 65.0], 8: [70, 72, 74], 32: [80, 79, 84]}
    (row,) = analysis_of(
        [make_series("ln", {**values, 64: [0.0, 0.0, 0.0]}, test=0)], 32
    ).robustness
    # Four cells with a spread: too few to share any.
    lost = stats.ttest_ind(values[32], values[2], equal_var=False).confidence_interval()
    assert (100 * row["loss_2_lo"], 100 * row["loss_2_hi"]) == pytest.approx(lost, rel=1e-9)
    slopes = [np.polyfit([0, 1, 3, 5], [values[b][s] for b in values], 1)[0] for s in range(3)]
    assert 100 * row["per_halving"] == pytest.approx(np.mean(slopes), rel=1e-9)
    bounds = stats.t.interval(0.95, 2, np.mean(slopes), stats.sem(slopes))
    assert 100 * row["per_halving_lo"] == pytest.approx(bounds[0], rel=1e-9)
    assert (row["batches"], row["n_halving"], row["n_1"]) == ("1 2 8 32", 3, 3)
    (row,) = analysis_of([make_series("bn", draw({2: 60, 8: 70}))], 32).robustness
    assert (math.isnan(row["loss_2"]), row["n_1"]) == (True, 0)  # without the reference
    assert row["per_halving"] == pytest.approx(0.05, abs=0.01)


def test_every_batch_size_against_the_reference_is_one_family_over_all_norms():
    bn = make_series("bn", draw({1: 40, 2: 70, 32: 80}, seed=1))
    gn = make_series("gn", draw({1: 79, 2: 79, 32: 79}, seed=2), groups=8)
    rows = analysis_of([bn, gn], 32).flatness
    assert {row["family"] for row in rows} == {4}
    assert [row["verdict"] for row in rows[:2]] == ["lower", "lower"]
    for row in rows:
        rejected = row["p_holm"] <= 0.05
        assert rejected == (row["lo_simultaneous"] >= 0 or row["hi_simultaneous"] <= 0)


def test_no_verdict_of_flatness_rests_on_a_p_that_is_not_adjusted():
    # 60 comparisons of nothing with nothing: unadjusted, three would differ and most be flat.
    values = {batch: list(row) for batch, row in zip(range(1, 31), NOTHING)}
    rows = analysis_of([make_series("bn", values), make_series("ln", values)], 30).flatness
    assert not [row for row in rows if row["verdict"] in ("lower", "higher")]
    assert all(row["p_equivalence_holm"] >= row["p_equivalence"] for row in rows)


NOTHING = np.random.default_rng(8).normal(80, 2, size=(30, 4))


def test_every_table_has_its_columns_and_says_why_it_is_empty():
    three = [make_series(norm, draw({1: 60}), groups=8 * (norm == "gn") or None) for norm in NORMS]
    full = tables(*three)
    assert tuple(full) == NORM_TABLES
    for table in full.values():
        assert table.rows
        assert set(table.columns) <= {k for row in table.rows for k in row} | set(KEY)
        assert all(all(isinstance(text, str) for text in texts) for texts in table.texts())
        assert not {"nan", "None"} & {text for texts in table.texts() for text in texts}
    empty = tables(make_series("gn", draw({1: 70}), groups=8))
    assert not empty["norm_comparisons"].rows
    assert "BN" in empty["norm_comparisons"].empty
