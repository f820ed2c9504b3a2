"""The report says why a small batch costs accuracy: in training, in evaluation, to whom."""

import csv
import itertools
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy import stats
from study_reports import build_report

from gnexp.analysis.batch_composition import batch_rows
from gnexp.analysis.cells import cells, series
from gnexp.analysis.class_accuracy import class_rows
from gnexp.analysis.corruption_robustness import STANDARD, condition_rows, summary_rows
from gnexp.analysis.decomposition import ACCURACY, LOSS, decomposition_rows
from gnexp.analysis.statistics import jackknife
from gnexp.analysis.tables.build import WHY_TABLES
from gnexp.report.text.summary import decomposition_sentences
from gnexp.store.run import Run
from gnexp.store.study import load_study

REL = 1e-9  # float64
ABS = 1e-12  # float64, of numbers of order 1
CLASSES = list("abcdefghij")
FIGURES = ("decomposition", "shift", "shift_share", "shift_by_corruption", "classes", "batches")


def add(study, norm, batch, seeds, name=None, diverged=(), head=None, **changes):
    """Write a run; seeds: {seed: numbers}, each accuracy with a loss that follows from it."""
    config = {
        **{"norm": {"name": norm, "eps": 1e-05}, "groups": 8 if norm == "gn" else None},
        **{"model": {"name": "tiny"}, "data": {"name": "shapes10"}, "batch": batch},
        **{"update_batch": batch, "seeds": [0, 1, 2], "epochs": 4, "lr": 0.1, **changes},
    }
    run = Run.create(study / (name or f"{norm}-b{batch}"))
    run.write_config(config)
    data = {"title": "Shapes", "checksum": "01234567", "train": 512, "test": 1000}
    top = {"config": config, "data": {**data, "classes": CLASSES}}
    for seed, numbers in seeds.items():
        known = {k: v for k, v in numbers.items() if k.startswith("test_acc") and v is not None}
        losses = {key.replace("acc", "loss"): 3 * (1 - value) for key, value in known.items()}
        run.set_status(seed, "complete")
        run.add_result(seed, {"status": "complete", **losses, **numbers}, **top, **(head or {}))
    for seed in diverged:
        run.set_status(seed, "diverged", "loss became nan")
        run.add_result(seed, {"status": "diverged", "test_acc": math.nan}, **top)
    return run


def under(running, population=None, plain=None):
    """Return accuracies under running, population, batch and example statistics.

    plain: under population statistics of images that are not augmented.
    """
    population = running if population is None else population
    numbers = {"test_acc": running, "test_acc_population_augmented": population}
    numbers["test_acc_population"] = population if plain is None else plain
    return {**numbers, "test_acc_batch": population, "test_acc_example": population}


def summary(study):
    return summary_rows(cells(load_study(study).runs))


def damage(study, measure=ACCURACY, reference=32):
    lines = series(cells(load_study(study).runs))
    return {r["batch"]: r for r in decomposition_rows(lines, reference, measure)}


@pytest.mark.parametrize(("training", "evaluation"), [(0.1, 0.0), (0.0, 0.1), (0.05, 0.2)])
def test_the_damage_is_found_where_it_was_done_with_paired_t_intervals(
    tmp_path, training, evaluation
):
    level, small, gap, ref_gap = np.random.default_rng(0).normal(0, 0.004, size=(4, 3))
    repaired = {32: 0.8 + level, 2: 0.8 - training + small}
    running = {32: repaired[32] - 0.01 + ref_gap, 2: repaired[2] - 0.01 - evaluation + gap}
    for batch in (2, 32):
        pairs = zip(running[batch], repaired[batch])
        add(tmp_path, "bn", batch, {seed: under(*map(float, p)) for seed, p in enumerate(pairs)})
    for measure, suffix, scale in ((ACCURACY, "", 1), (LOSS, "_nats", 3)):  # loss: 3 (1 - accuracy)
        row = damage(tmp_path, measure)[2]
        for part, truth, lost in (
            ("total", training + evaluation, running[32] - running[2]),
            ("training", training, repaired[32] - repaired[2]),
            ("evaluation", evaluation, running[32] - repaired[32] - running[2] + repaired[2]),
        ):
            found, lo, hi = (row[f"{part}_damage{suffix}{end}"] for end in ("", "_lo", "_hi"))
            assert lo <= scale * truth <= hi
            assert found == pytest.approx(scale * lost.mean(), abs=ABS)
            expected = stats.t.interval(0.95, 2, scale * lost.mean(), scale * stats.sem(lost))
            assert (lo, hi) == pytest.approx(expected, rel=REL)
        parts = [row[f"{part}_damage{suffix}"] for part in ("training", "evaluation")]
        assert row[f"total_damage{suffix}"] == sum(parts)
        assert (row["n_shared"], row["pools"]) == (3, True)


@pytest.mark.parametrize("name", ["bn", "MyNorm"])
def test_batch_one_stands_apart_where_statistics_pool_and_not_by_name(tmp_path, name):
    for batch in (1, 2, 32):
        own = {s: under(0.5, 0.6, 0.75) for s in (0, 1)}
        add(tmp_path / "pooling", name, batch, own)
        add(tmp_path / "alone", name, batch, {s: under(0.5) for s in (0, 1)})
    found = {batch: row["apart"] for batch, row in damage(tmp_path / "pooling").items()}
    assert found == {1: True, 2: False, 32: False}
    assert not any(row["apart"] for row in damage(tmp_path / "alone").values())
    sentences = decomposition_sentences(list(damage(tmp_path / "pooling").values()))
    assert [("single images" in text, "batch 2 " in text) for text in sentences] == [
        (True, False),
        (False, True),
    ]


def test_rounding_of_another_batch_size_is_no_pooling(tmp_path):
    for batch in (1, 32):
        seeds = {
            s: {**under(0.8, 0.801), "test_loss": 0.6, "test_loss_population": 0.6000002}
            for s in (0, 1)
        }
        for numbers in seeds.values():
            numbers |= {
                "test_loss_population_augmented": 0.6000001,
                "test_loss_batch": 0.6,
                "test_loss_example": 0.6,
            }
        add(tmp_path, "gn", batch, seeds)
    assert not damage(tmp_path)[1]["pools"]


def test_a_diverged_seed_counts_at_chance_as_training_damage_and_leaves_the_levels(tmp_path):
    add(tmp_path, "bn", 32, {s: under(0.8) for s in (0, 1, 2)})
    add(tmp_path, "bn", 2, {s: under(0.7, 0.75) for s in (0, 1)}, diverged=(2,))
    row = damage(tmp_path)[2]
    assert row["training_damage"] == pytest.approx((0.05 + 0.05 + 0.7) / 3, abs=ABS)
    assert row["evaluation_damage"] == pytest.approx(2 * 0.05 / 3, abs=ABS)
    assert row["accuracy_running"] == pytest.approx(0.7, abs=ABS)
    assert (row["n"], row["n_diverged"], row["n_shared"], row["n_at_chance"]) == (2, 1, 3, 1)
    nats = damage(tmp_path, LOSS)[2]
    lost = (0.15 + 0.15 + math.log(10) - 0.6) / 3
    assert nats["training_damage_nats"] == pytest.approx(lost, abs=ABS)
    assert "1 counted at chance" in decomposition_sentences([row])[0]


def test_what_cannot_be_split_says_why(tmp_path):
    lacking = "population statistics of augmented images not measured for seed"
    none = dict.fromkeys(("test_acc_population_augmented", "test_acc_population"))
    add(tmp_path, "bn", 32, {s: under(0.8, plain=0.7) for s in (0, 1)})
    add(tmp_path, "bn", 1, {s: under(0.7, 0.75, plain=0.5) for s in (1, 2)})
    add(tmp_path, "bn", 2, {0: under(0.7, 0.75), 1: {"test_acc": 0.7}})
    add(tmp_path, "bn", 4, {s: {"test_acc": 0.7, **none} for s in (0, 1)}, diverged=(2,))
    add(tmp_path, "bn", 8, {5: under(0.7, 0.75)})
    found = damage(tmp_path)
    assert {batch: row["note"] for batch, row in found.items()} == {
        1: "not in the reference: seed 2; one shared seed: no interval",
        2: f"{lacking} 1; one shared seed: no interval",
        4: f"{lacking}s 0, 1",  # the diverged seed does not speak for them
        8: "no seed in common with the reference",
        32: "the reference",
    }
    assert damage(tmp_path, reference=64)[2]["note"] == "no batch 64 in its series"
    assert (found[2]["n_shared"], found[2]["n"], found[2]["n_population_augmented"]) == (1, 2, 1)
    assert all(math.isnan(found[4][f"{part}_damage"]) for part in ("total", "training"))
    one = found[1]  # plain images do not split it
    assert one["training_damage"] == pytest.approx(0.05, abs=ABS)
    assert one["accuracy_population"] == pytest.approx(0.5, abs=ABS)
    assert math.isnan(one["training_damage_lo"])
    assert "no interval" in decomposition_sentences([one])[0]
    assert decomposition_sentences([found[4]]) == []


# Shift

TRUE = np.random.default_rng(1)
CONDITIONS = [(c, s) for c in STANDARD[:4] for s in (1, 3)]


def add_shift(study, norm, batch, clean, rises, seeds=(0, 1, 2), scatter=0.01, **changes):
    """Write shift.csv; returns {seed: {(corruption, severity): accuracy}}."""
    run = add(study, norm, batch, {s: {"test_acc": clean} for s in seeds}, **changes)
    table = {}
    for seed in seeds:
        own = clean + TRUE.normal(0, scatter)
        table[seed] = {("clean", 0): own}
        table[seed] |= {c: own - r + TRUE.normal(0, scatter) for c, r in rises.items()}
        run.add_rows(
            "shift.csv",
            [
                {"seed": seed, "corruption": c, "severity": s, "n": 500, "accuracy": a, "loss": 1}
                for (c, s), a in table[seed].items()
            ],
        )
    return table


def only(rows, **wanted):
    found = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def steps(factor=1.0):
    return {c: factor * (0.05 + 0.01 * i) for i, c in enumerate(CONDITIONS)}


def test_the_rise_is_paired_over_seeds_and_a_worse_clean_network_is_not_less_robust(tmp_path):
    table = add_shift(tmp_path, "gn", 2, 0.8, steps(), scatter=0.05)
    add_shift(tmp_path, "ln", 2, 0.5, steps(), scatter=0.0)
    rows = summary(tmp_path)
    clean = [a["clean", 0] for a in table.values()]
    corrupted = [np.mean([a[c] for c in CONDITIONS]) for a in table.values()]
    row = only(rows, norm="gn")
    interval = stats.ttest_rel(clean, corrupted).confidence_interval(0.95)
    assert (row["rise_lo"], row["rise_hi"]) == pytest.approx(tuple(interval), rel=REL)
    assert row["clean"] - row["corrupted"] == pytest.approx(row["rise"], abs=ABS)
    assert (row["corruptions"], row["severities"], row["n"]) == (4, "1 3", 3)
    assert only(rows, norm="ln")["rise"] == pytest.approx(np.mean(list(steps().values())), abs=ABS)
    condition = only(
        condition_rows(cells(load_study(tmp_path).runs)),
        norm="gn",
        corruption="shot_noise",
        severity=3,
    )
    interval = stats.ttest_rel(clean, [a["shot_noise", 3] for a in table.values()])
    expected = tuple(interval.confidence_interval(0.95))
    assert (condition["rise_lo"], condition["rise_hi"]) == pytest.approx(expected, rel=REL)
    assert (condition["n"], condition["images"]) == (3, 500)


def test_the_share_lost_is_that_of_the_accuracy_above_chance_with_fieller_s_interval(tmp_path):
    pure = {("pure_contrast", 3): 0.2}
    table = add_shift(tmp_path, "gn", 2, 0.4, {**steps(), **pure}, scatter=0.02)
    (row,) = summary(tmp_path)
    assert row["chance"] == 0.1
    clean = np.array([a["clean", 0] for a in table.values()])
    for suffix, corrupted in (
        ("", np.array([np.mean([a[c] for c in CONDITIONS]) for a in table.values()])),
        ("_pure_contrast", np.array([a["pure_contrast", 3] for a in table.values()])),
    ):
        share, lo, hi = (row[f"share_lost{suffix}{end}"] for end in ("", "_lo", "_hi"))
        assert share == pytest.approx((clean - corrupted).sum() / (clean - 0.1).sum(), rel=REL)
        assert lo < share < hi
        for end in (lo, hi):  # the shares that a t test over seeds just rejects at 5 %
            left = clean - corrupted - end * (clean - 0.1)
            assert stats.ttest_1samp(left, 0).pvalue == pytest.approx(0.05, rel=1e-6)


def test_a_network_at_chance_has_no_accuracy_to_lose_a_share_of(tmp_path):
    add_shift(tmp_path, "gn", 1, 0.08, steps(0.1), scatter=0)
    add_shift(tmp_path, "bn", 1, 0.12, steps(0.1), scatter=0.02)
    rows = summary(tmp_path)
    below, near = only(rows, norm="gn"), only(rows, norm="bn")
    assert math.isnan(below["share_lost"])
    assert "not above chance: no share lost" in below["note"]
    assert math.isfinite(near["share_lost"])
    assert math.isnan(near["share_lost_lo"])
    assert "not decidedly above chance: no interval" in near["note"]


def mce_by_hand(mine, theirs, seeds, relative):
    """Errors as arrays of (seed, corruption, severity), summed as the definition says."""

    def errors(table):
        shaped = np.array([[table[s][c] for c in CONDITIONS] for s in seeds]).reshape(-1, 4, 2)
        clean = np.array([table[s]["clean", 0] for s in seeds])[:, None, None]
        return (clean if relative else 1) - shaped

    return np.mean(errors(mine).sum(axis=(0, 2)) / errors(theirs).sum(axis=(0, 2)))


def test_the_mce_is_relative_to_bn_at_the_same_batch(tmp_path):
    mine = add_shift(tmp_path, "gn", 2, 0.8, steps(0.5))
    theirs = add_shift(tmp_path, "bn", 2, 0.7, steps())
    add_shift(tmp_path, "bn", 32, 0.9, steps(0.1))
    rows = summary(tmp_path)
    row = only(rows, norm="gn")
    for name, relative in (("mce", False), ("relative_mce", True)):
        whole = mce_by_hand(mine, theirs, (0, 1, 2), relative)
        assert row[name] == pytest.approx(whole, rel=REL)
        out = [mce_by_hand(mine, theirs, s, relative) for s in ((1, 2), (0, 2), (0, 1))]
        half = 4.302652729911275 * math.sqrt(2 / 3 * sum((o - np.mean(out)) ** 2 for o in out))
        assert row[f"{name}_hi"] - row[name] == pytest.approx(half, rel=1e-7)
    assert (row["reference"], row["n_shared"]) == ("BN, batch 2", 3)
    assert row["relative_mce"] == pytest.approx(0.5, abs=0.2)
    reference = only(rows, norm="bn", batch=2)
    assert (reference["mce"], reference["note"]) == (1.0, "the reference of mCE")


def test_a_row_without_a_reference_or_a_ratio_says_so(tmp_path):
    for study, bn, rises in (("absent", 32, steps()), ("unharmed", 2, {**steps(), UNHARMED: -0.2})):
        add_shift(tmp_path / study, "gn", 2, 0.8, steps(), scatter=0)
        add_shift(tmp_path / study, "bn", bn, 0.7, rises, scatter=0)
    absent, unharmed = (only(summary(tmp_path / s), norm="gn") for s in ("absent", "unharmed"))
    assert math.isnan(absent["mce"])
    assert absent["note"] == "no measured BN to refer to: no mCE"
    assert (math.isnan(unharmed["relative_mce"]), math.isnan(unharmed["mce"])) == (True, False)
    assert "no relative mCE" in unharmed["note"]
    harm = {**steps(0.0), ("shot_noise", 1): 0.1}
    for name, more, seeds in (("one", 0.1, (0,)), ("others", 0.0, (1, 2))):  # of two runs
        rises = {c: r + more * (c[0] != "shot_noise") for c, r in harm.items()}
        add_shift(tmp_path / "one", "bn", 2, 0.7, rises, seeds, 0, name=name, gradients=len(name))
    add_shift(tmp_path / "one", "gn", 2, 0.8, steps(), scatter=0)
    row = only(summary(tmp_path / "one"), norm="gn")
    assert math.isfinite(row["relative_mce"])
    assert math.isnan(row["relative_mce_lo"])
    assert "hangs on one seed" in row["note"]


UNHARMED = ("gaussian_noise", 1)


def test_a_seed_without_every_condition_is_left_out_of_the_sum_and_own_corruptions_too(tmp_path):
    pure = {("pure_contrast", s): 0.3 for s in (1, 3)}
    add_shift(tmp_path, "gn", 2, 0.8, {**steps(), **pure}, scatter=0)
    run = Run(tmp_path / "gn-b2")
    kept = [r for r in run.rows("shift.csv") if (r["seed"], r["severity"]) != (2, 3)]
    run.replace_rows("shift.csv", kept)
    (row,) = summary(tmp_path)
    assert (row["n"], row["n_left_out"], row["corruptions"]) == (2, 1, 4)
    assert row["rise"] == pytest.approx(np.mean(list(steps().values())), abs=ABS)
    assert row["rise_pure_contrast"] == pytest.approx(0.3, abs=ABS)
    conditions = condition_rows(cells(load_study(tmp_path).runs))
    assert only(conditions, corruption="shot_noise", severity=1)["n"] == 3


def test_the_jackknife_of_a_mean_is_the_t_interval():
    x = np.array([0.3, 0.5, 0.45, 0.9])
    found = jackknife(4, lambda chosen: float(np.mean(x[list(chosen)])))
    expected = stats.t.interval(0.95, 3, loc=x.mean(), scale=stats.sem(x))
    assert (found.lo, found.hi) == pytest.approx(expected, rel=REL)
    assert math.isnan(jackknife(1, lambda chosen: 2.0).lo)
    assert math.isnan(jackknife(3, lambda chosen: math.nan if len(chosen) < 3 else 1.0).hi)


# Classes and batches


def add_classes(run, table):
    for seed, accuracies in table.items():
        run.add_rows(
            "classes.csv",
            [
                {"seed": seed, "class": c, "n": 100 if a == a else 0, "accuracy": a}
                for c, a in zip(CLASSES, accuracies)
            ],
        )


def test_the_gap_is_taken_after_averaging_over_seeds(tmp_path):
    head = {"classes": {"chance_gap": 0.02, "chance_gap_95": 0.04, "gap_p": 0.3}}
    seeds = {0: {"test_acc": 0.7, "ece": 0.02}, 1: {"test_acc": 0.7, "ece": 0.06}}
    run = add(tmp_path, "gn", 2, seeds, head=head)
    add_classes(run, {0: [0.9, 0.5, 0.72, math.nan], 1: [0.5, 0.9, 0.72, math.nan]})
    (row,) = class_rows(cells(load_study(tmp_path).runs))
    assert row["gap"] == pytest.approx(0.02, abs=ABS)  # of one seed: 0.4
    # The fourth class has no test image, and takes no part.
    assert (row["best_class"], row["worst_class"], row["classes"]) == ("c", "a", 3)
    assert row["mean"] == pytest.approx(2.12 / 3, abs=ABS)
    assert (row["chance_gap"], row["chance_gap_95"], row["gap_p"]) == (0.02, 0.04, 0.3)
    expected = stats.t.interval(0.95, 1, loc=0.04, scale=stats.sem([0.02, 0.06]))
    # an error is at least 0
    assert (row["ece_lo"], row["ece_hi"]) == pytest.approx((0, expected[1]), rel=REL)


def company(seed, statistics, composition, at_batch, accuracy, expected, change):
    return {
        **{"seed": seed, "statistics": statistics, "composition": composition, "n": 500},
        **{"at_batch": at_batch, "accuracy": accuracy, "loss": 1.0, "expected": expected},
        "logit_change": change,
    }


def test_the_effect_of_company_is_paired_and_the_largest_logit_change_is_kept(tmp_path):
    run = add(tmp_path, "bn", 2, {s: {"test_acc": 0.7} for s in (0, 1, 2)})
    accuracies, expected = [0.30, 0.35, 0.31], [0.70, 0.72, 0.69]
    for seed in (0, 1, 2):
        rows = [company(seed, "batch", "one_class", 8, accuracies[seed], expected[seed], seed)]
        run.add_rows("batches.csv", [*rows, company(seed, "running", "iid", 8, 0.7, 0.7, 1e-6)])
    usual, row = batch_rows(cells(load_study(tmp_path).runs))
    interval = stats.ttest_rel(accuracies, expected).confidence_interval(0.95)
    assert (row["change_lo"], row["change_hi"]) == pytest.approx(tuple(interval), rel=REL)
    assert (row["logit_change"], row["n"], usual["change"]) == (2.0, 3, 0.0)


# The report


def make_demo(study):
    head = {"classes": {"chance_gap": 0.02, "chance_gap_95": 0.04, "gap_p": 0.3}}
    for norm, batch in itertools.product(("bn", "gn"), (1, 2, 32)):
        lost = 0.2 / batch * (norm == "bn")
        seeds = {s: under(0.7 - 2 * lost + s / 100, 0.7 - lost + s / 100) for s in (0, 1)}
        run = add(study, norm, batch, {s: {**n, "ece": 0.1} for s, n in seeds.items()}, head=head)
        add_classes(run, {s: [0.6, 0.7 + lost, 0.8] for s in seeds})
        for seed in seeds:
            run.add_rows(
                "shift.csv",
                [
                    {"seed": seed, "corruption": c, "severity": s, "n": 500, "loss": 1.0}
                    | {"accuracy": 0.7 - 0.02 * s - 0.01 * seed * s}
                    for c, s in (("clean", 0), ("fog", 1), ("fog", 3), ("colour_cast", 3))
                ],
            )
            run.add_rows(
                "batches.csv",
                [
                    company(seed, k, c, b, 0.6 - (k == "batch") * lost, 0.6, 0.1)
                    for k in ("running", "batch")
                    for c in ("iid", "one_class", "label_shift")
                    for b in (1, 8)
                ],
            )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    study = tmp_path_factory.mktemp("results") / "why"
    make_demo(study)
    return build_report(study)


def test_the_report_has_every_table_and_figure_that_was_measured(report):
    for name in WHY_TABLES:
        assert {f"{name}.csv", f"{name}.md", f"{name}.tex"} <= set(report)
    for name in FIGURES:
        ElementTree.parse(report[f"{name}.svg"])
    page = report["index.html"].read_text()
    assert "Where the small batch hurts" in page
    assert "BN, batch 2 against 32:" in page


def test_raw_tables_have_the_columns_that_the_rows_fill(report):
    for name in WHY_TABLES:
        rows = list(csv.DictReader(report[f"{name}.csv"].open()))
        empty = {c for c in rows[0] if all(row[c] == "" for row in rows)}
        assert empty <= {"groups", "note", "interval"}, name


def test_a_study_that_measured_nothing_has_none_of_these_and_what_went_is_removed(tmp_path):
    for batch in (2, 32):
        add(tmp_path / "s", "gn", batch, {s: under(0.7) for s in (0, 1)})
    assert "decomposition.csv" in build_report(tmp_path / "s")
    for batch in (2, 32):
        add(tmp_path / "s", "gn", batch, {s: {"test_acc": 0.7} for s in (0, 1)})
    files = build_report(tmp_path / "s")
    assert not [n for n in files if n.split(".")[0] in {*WHY_TABLES, *FIGURES}]
    left = {path.name.split(".")[0] for path in (tmp_path / "s" / "report").iterdir()}
    assert not left & {*WHY_TABLES, *FIGURES}
    assert "Where the small batch hurts" not in files["index.html"].read_text()
