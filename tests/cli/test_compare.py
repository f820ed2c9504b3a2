"""Two studies side by side: cells that are alike are compared, and nothing else is."""

import itertools
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from run_files import table
from scipy import stats
from study_reports import build_comparison, compare

from gnexp.analysis import cells as grouping
from gnexp.analysis.compare_studies import match, overall, what_differs
from gnexp.report.comparison_report import comparison_folder
from gnexp.store.run import Run
from gnexp.store.study import load_study, studies

CLASSES = list("abcdefghij")
MATCHED = ("norm", "groups", "batch", "update_batch")


def add_run(study, norm, batch, accuracies, *, diverged=(), checksum="c0ffee00", **keys):
    """Write one run whose seeds have these accuracies: {seed: accuracy}, or a list."""
    test, classes = keys.pop("test", 1000), keys.pop("classes", 10)
    settings = {
        "norm": {"name": norm, **keys.pop("norm_keys", {})},
        "groups": 8 if norm == "gn" else None,
        "model": {"name": keys.pop("model", "tiny"), "width": 32},
        "data": {"name": "shapes10"},
        "batch": batch,
        "update_batch": keys.pop("update_batch", batch),
        **{"epochs": 4, "lr": 0.1, **keys},
    }
    seeds = accuracies if isinstance(accuracies, dict) else dict(enumerate(accuracies))
    run = Run.create(study / f"{norm}-b{batch}-{zlib.crc32(repr(settings).encode()):08x}")
    run.write_config({**settings, "seeds": sorted(seeds)})
    run.write_provenance({"commit": "abc1234", "torch": "2.14.1", "started": "2026-11-22T16:00:00"})
    data = {"title": "Shapes", "checksum": checksum, "train": 5120, "test": test}
    head = {"run": run.name, "config": settings, "data": {**data, "classes": CLASSES[:classes]}}
    head["pools"] = "chw"  # no cell is known to scatter
    for seed, accuracy in seeds.items():
        status = "diverged" if seed in diverged else "complete"
        final = None if seed in diverged else accuracy
        run.set_status(seed, status)
        run.add_result(seed, {"status": status, "test_acc": final, "epochs": 4}, **head)
    return run


def draws(level, seed, n=4, sd=0.01):
    return (level + sd * np.random.default_rng(seed).standard_normal(n)).tolist()


@pytest.fixture
def out(tmp_path):
    """Two studies of two norms at batch 2 and 32: `b` has another model, and costs less."""
    for turn, (norm, batch) in enumerate(itertools.product(("bn", "gn"), (2, 32))):
        hurt = 0.2 * (norm == "bn" and batch == 2)
        add_run(tmp_path / "a", norm, batch, draws(0.7 - hurt, turn))
        add_run(tmp_path / "b", norm, batch, draws(0.8 - hurt / 4, 10 + turn), model="resnet20")
    return tmp_path


def both(out, *names):
    return [grouping.cells(load_study(out / name).runs) for name in names or ("a", "b")]


def pairs_of(out):
    return match(*both(out), ("a", "b"))[0]


def row_at(rows, norm, batch):
    (row,) = [r for r in rows if (r["norm"], r["batch"]) == (norm, batch)]
    return row


def accuracies(out, study, norm, batch):
    (cell,) = [c for c in both(out, study)[0] if (c.key["norm"], c.key["batch"]) == (norm, batch)]
    return cell.accuracies


def test_every_cell_that_both_studies_have_is_matched_once(out):
    pairs, alone = match(*both(out), ("a", "b"))
    assert [tuple(p.key[k] for k in MATCHED) for p in pairs] == [
        *(("bn", None, 2, 2), ("bn", None, 32, 32), ("gn", 8, 2, 2), ("gn", 8, 32, 32))
    ]
    assert alone == []
    assert all(p.first.record.folder.parent.name == "a" for p in pairs)


def test_a_cell_of_one_study_alone_is_listed_with_the_reason_and_not_dropped(out):
    add_run(out / "a", "ln", 2, draws(0.5, 1))
    add_run(out / "b", "bn", 2, draws(0.5, 1), update_batch=64, model="resnet20")
    pairs, alone = match(*both(out), ("a", "b"))
    assert len(pairs) == 4
    told = [(a["study"], a["norm"], a["update_batch"], a["why"]) for a in alone]
    assert told == [("a", "ln", 2, "not in b"), ("b", "bn", 64, "not in a")]


def test_what_tells_cells_of_one_study_apart_must_agree_with_the_other(out):
    rule = {"momentum": 0.1, "momentum_rule": "examples"}
    run = add_run(out / "b", "bn", 2, draws(0.9, 1), model="resnet20", norm_keys=rule)
    usual = {"momentum": 0.1, "momentum_rule": "batches"}
    for study in ("a", "b"):
        for folder in (out / study).glob("bn-*"):
            if folder != run.folder:
                stored = Run(folder).result()
                stored["config"]["norm"] |= usual
                Run(folder).write_result(stored)
    pairs, alone = match(*both(out), ("a", "b"))
    assert [p.key["norm.momentum_rule"] for p in pairs] == ["batches", "batches", None, None]
    assert [(a["study"], a["norm.momentum_rule"]) for a in alone] == [("b", "examples")]
    build_comparison(out, ["a", "b"])
    table = (out / "report/a-vs-b/unmatched.md").read_text()
    assert "| b | BN | 2 | examples | not in a |" in table


def test_a_rate_that_follows_the_batch_size_does_not_keep_cells_from_being_matched(tmp_path):
    for batch, rate in ((2, 0.05), (32, 0.4)):
        add_run(tmp_path / "a", "bn", batch, draws(0.7, batch), lr=0.1)
        add_run(tmp_path / "b", "bn", batch, draws(0.7, batch), lr=rate)
    pairs, alone = match(*both(tmp_path), ("a", "b"))
    assert (len(pairs), alone) == (2, [])
    (row,) = [r for r in what_differs(*both(tmp_path)) if r["what"] == "lr"]
    assert (row["first"], row["second"]) == ("0.1", "0.05, 0.4")


def test_a_difference_adds_the_images_of_both_studies_to_the_spread_of_the_seeds(out):
    for row in compare(out, "ab").accuracy:
        a, b = (accuracies(out, s, row["norm"], row["batch"]) for s in "ab")
        difference = np.mean(b) - np.mean(a)
        seeds = sum(np.var(x, ddof=1) / 4 for x in (a, b))  # four cells a study: each its own
        images = sum(np.mean(x) * (1 - np.mean(x)) / 1000 for x in (a, b))
        dof = (seeds + images) ** 2 / (
            sum((np.var(x, ddof=1) / 4) ** 2 / 3 for x in (a, b)) + images**2 / 999
        )
        interval = stats.t.interval(0.95, dof, difference, math.sqrt(seeds + images))
        assert (row["method"], row["images"]) == ("Welch", "bound")
        assert row["difference"] == pytest.approx(difference, abs=1e-12)
        assert (row["lo95"], row["hi95"]) == pytest.approx(interval, abs=1e-9)
        assert row["se_images"] == pytest.approx(math.sqrt(images), rel=1e-9)


def test_a_diverged_seed_counts_at_chance_in_the_difference_and_is_told(tmp_path):
    add_run(tmp_path / "a", "gn", 2, [0.7, 0.72, 0.71], diverged=(2,))
    add_run(tmp_path / "b", "gn", 2, [0.7, 0.71, 0.72], model="resnet20")
    (row,) = compare(tmp_path, "ab").accuracy
    assert row["difference"] == pytest.approx(0.71 - (0.7 + 0.72 + 0.1) / 3)
    assert (row["first_mean"], row["first_n"], row["first_n_diverged"]) == (
        pytest.approx(0.71),
        2,
        1,
    )
    build_comparison(tmp_path, ["a", "b"])
    assert "n = 2, 1 of 3 diverged" in (tmp_path / "report/a-vs-b/comparison.md").read_text()


def test_the_costs_of_a_batch_are_compared_by_the_spread_of_all_four_cells(out):
    for row in compare(out, "ab", 32).costs:
        cells = [accuracies(out, s, row["norm"], b) for s in "ba" for b in (2, 32)]
        signs = (1, -1, -1, 1)
        difference = sum(sign * np.mean(x) for sign, x in zip(signs, cells))
        costs = [np.mean(cells[i]) - np.mean(cells[i + 1]) for i in (2, 0)]
        assert (row["first_cost"], row["second_cost"]) == pytest.approx(costs, abs=1e-12)
        assert row["difference"] == pytest.approx(difference, abs=1e-12)
        seeds = math.sqrt(sum(np.var(x, ddof=1) / 4 for x in cells))
        assert row["se_seeds"] == pytest.approx(seeds, rel=1e-9)
        assert (row["lo95"] + row["hi95"]) / 2 == pytest.approx(difference, abs=1e-9)
    assert [row["verdict"] for row in compare(out, "ab", 32).costs] == ["higher", "undecided"]
    assert compare(out, "ab", 16).costs == [], "neither study has this reference batch"


def test_an_accumulated_batch_is_compared_with_the_reference_of_the_same_update(tmp_path):
    for study, shift in (("a", 0.0), ("b", 0.1)):
        for batch, update in ((2, 64), (32, 64), (32, 32)):
            level = 0.5 + shift + batch / 100 + update / 1000
            add_run(tmp_path / study, "bn", batch, draws(level, 1, sd=1e-4), update_batch=update)
    rows = compare(tmp_path, "ab", 32).costs
    assert [(r["batch"], r["update_batch"]) for r in rows] == [(2, 64)]
    assert rows[0]["first_cost"] == pytest.approx(-0.3)


def test_the_mean_over_cells_is_one_number_per_seed(out):
    means = [
        np.mean([accuracies(out, s, n, b) for n in ("bn", "gn") for b in (2, 32)], axis=0)
        for s in "ab"
    ]
    interval = stats.ttest_ind(means[1], means[0], equal_var=False).confidence_interval(0.95)
    found, *seeds = overall(pairs_of(out))
    assert seeds == [4, 4]
    assert (found.lo, found.hi) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_verdicts_are_adjusted_for_the_number_of_comparisons(tmp_path):
    """One comparison with p = 0.03 is decided alone, and not among ten."""
    many = {"test": 10**7}
    first, second = [0.70, 0.71, 0.72, 0.73], [0.726, 0.736, 0.746, 0.756]
    add_run(tmp_path / "a", "gn", 1, first, **many)
    add_run(tmp_path / "b", "gn", 1, second, epochs=8, **many)
    (row,) = compare(tmp_path, "ab").accuracy
    assert row["verdict"] == "higher"
    assert row["p"] == pytest.approx(stats.ttest_ind(second, first).pvalue, rel=0.01)
    for batch in range(2, 11):
        add_run(tmp_path / "a", "gn", batch, draws(0.7, batch), **many)
        add_run(tmp_path / "b", "gn", batch, draws(0.7, batch + 20), epochs=8, **many)
    row = row_at(compare(tmp_path, "ab").accuracy, "gn", 1)
    assert (row["verdict"], row["family"]) == ("undecided", 10)
    assert row["p"] < 0.05 < row["p_holm"]
    assert row["lo_simultaneous"] < 0 < row["lo95"]


def test_a_study_and_its_copy_differ_in_nothing(tmp_path):
    for study in "ab":
        add_run(tmp_path / study, "gn", 2, [0.7, 0.71, 0.72])
    assert what_differs(*both(tmp_path)) == []
    _, found = build_comparison(tmp_path, ["a", "b"])
    assert "+0.00 points, 95 % interval over seeds [-2.27, 2.27] (n = 3 seeds of a" in found[0]


ALIKE, HIGHER = (draws(0.7, 1), draws(0.7, 2)), (draws(0.5, 1), draws(0.7, 3))
ONE_SEED = [0.7], [0.9]
SENTENCES = [  # accuracies of both studies by batch size, and parts of the first sentences
    (
        {2: ONE_SEED, 32: ONE_SEED},
        "no interval: fewer than two seeds",
        "Of 2 cells compared, none is tested: fewer than two seeds.",
        "The one cost against batch 32 is not tested: fewer than two seeds.",
    ),
    (
        {2: HIGHER, 4: HIGHER, 8: ALIKE, 16: ONE_SEED},
        "",
        "Of 4 cells compared, b is higher in 2 (Holm, 5 %), 1 is undecided, 1 is not tested (fewer",
    ),
    (
        {2: HIGHER, 32: ALIKE},
        "",
        "",
        "differs between the studies in the one comparison (Holm, 5 %); at GN(8) at batch 2",
    ),
    ({2: HIGHER}, "", "b is higher in the one cell compared (Holm, 5 %): +"),
    (
        {2: ALIKE, 4: ONE_SEED, 32: ALIKE},
        "",
        "(Holm, 5 %): 2 are undecided, 1 is not tested (fewer than two seeds).",
        "Of 2 costs against batch 32, none is shown to differ between a and b ",
    ),
]


@pytest.mark.parametrize("told", SENTENCES, ids=[str([*case[0]]) for case in SENTENCES])
def test_sentences_count_what_is_decided_undecided_and_untested(tmp_path, told):
    cells, *parts = told
    for batch, accuracies_of_both in cells.items():
        for study, seeds in zip("ab", accuracies_of_both):
            add_run(tmp_path / study, "gn", batch, seeds, model=study)
    _, found = build_comparison(tmp_path, ["a", "b"])
    assert len(found) >= len(parts)
    for sentence, part in zip(found, parts):
        assert part in sentence


def test_a_study_that_has_no_seed_with_every_cell_is_named_alone(tmp_path):
    add_run(tmp_path / "a", "gn", 2, {0: 0.7, 1: 0.7})
    add_run(tmp_path / "a", "gn", 4, {2: 0.7, 3: 0.7})
    for batch in (2, 4):
        add_run(tmp_path / "b", "gn", batch, draws(0.7, batch))
    _, found = build_comparison(tmp_path, ["a", "b"])
    assert found[0].startswith("No seed of a has the 2 cells of both")


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        ("a", "Accuracies of a are of validation images, those of b of test images"),
        ("ab", "Every accuracy here is of images held out of the training set"),
        ("", ""),
    ],
)
def test_accuracies_of_validation_images_are_not_taken_for_those_of_test_images(
    tmp_path, held_out, told
):
    for study in "ab":
        data = {"name": "shapes10", "validation": 0.1 if study in held_out else None}
        add_run(tmp_path / study, "gn", 2, draws(0.7, 1), data=data)
    build_comparison(tmp_path, ["a", "b"])
    page = (tmp_path / "report/a-vs-b/index.html").read_text()
    assert told in page
    assert ('role="note"' in page) == bool(told)


def test_only_what_differs_is_told_of_settings_data_and_versions(out):
    add_run(out / "b", "gn", 2, {7: 0.7}, model="resnet20")
    told = {row["what"]: (row["first"], row["second"]) for row in what_differs(*both(out))}
    assert told == {
        "model": ("tiny", "resnet20"),
        "seeds": ("0, 1, 2, 3", "0, 1, 2, 3, 7"),
    }


def test_other_test_sets_are_said_to_be_other_tasks(tmp_path):
    add_run(tmp_path / "a", "gn", 2, draws(0.7, 1))
    add_run(tmp_path / "b", "gn", 2, draws(0.7, 1), checksum="other", test=500, classes=4)
    build_comparison(tmp_path, ["a", "b"])
    page = (tmp_path / "report/a-vs-b/index.html").read_text()
    assert "1000 images of 10 classes in a, 500 images of 4 classes in b, whose chance" in page


def test_the_same_studies_give_the_same_bytes_and_nothing_of_an_earlier_report_stays(out):
    written, _ = build_comparison(out, ["a", "b"], formats=["pdf"])
    before = {path.name: path.read_bytes() for path in written.values()}
    stale = out / "report/a-vs-b/accuracy_vs_batch.pdf"
    stale.write_bytes(b"of an earlier report")
    written, _ = build_comparison(out, ["a", "b"], formats=["pdf"])
    assert {path.name: path.read_bytes() for path in written.values()} == before
    there = {p.name for p in stale.parent.iterdir() if not p.name.startswith(".")}
    assert there == set(written)


def test_a_comparison_is_no_study_and_no_two_pairs_share_a_folder(out):
    build_comparison(out, ["a", "b"])
    assert studies(out) == ["a", "b"]
    names = ["x", "y", "x-vs", "vs-y", "x-vs-y", "y-vs-x", "vs", "x-vs-vs"]
    pairs = list(itertools.permutations(names, 2))
    folders = {comparison_folder(out, pair) for pair in pairs}
    assert len(folders) == len(pairs)


def test_the_page_stands_alone_and_holds_both_answers_and_every_difference(out):
    build_comparison(out, ["a", "b"])
    page = (out / "report/a-vs-b/index.html").read_text()
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert page.count("data:image/svg+xml,") == 2
    rows = table(out / "report/a-vs-b/comparison.csv")
    assert len(rows) == 4
    for row in rows:
        assert f"{100 * float(row['difference']):+.2f}" in page


def test_studies_without_a_common_cell_say_so(tmp_path):
    add_run(tmp_path / "a", "gn", 2, draws(0.7, 1))
    add_run(tmp_path / "b", "bn", 4, draws(0.7, 1))
    _, found = build_comparison(tmp_path, ["a", "b"])
    assert found == ["The studies have no cell in common, so there is nothing to compare."]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("study=[a,b,a]", "study=[a,b,a] must be two studies"),
        ("study=[a,c]", "study=c does not exist"),
        ("study=[a,empty]", "study=empty holds no run yet"),
        ("study=[a,begun]", "study=begun has no finished seed yet"),
        ("study=a,b", "to compare two studies type study=[a,b]"),
    ],
)
def test_what_cannot_be_compared_gets_one_sentence(gnexp, workdir, typed, told):
    add_run(workdir / "results/a", "gn", 2, draws(0.7, 1))
    (workdir / "results/empty").mkdir()
    Run.create(workdir / "results/begun/gn-b2").write_config({"norm": {"name": "gn"}, "batch": 2})
    answer = gnexp("report", typed)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1), answer
    assert told in answer.err
    assert not (workdir / "results/report").exists()


def test_the_command_prints_what_was_found_and_where_it_lies(gnexp, workdir):
    add_run(workdir / "results/a", "gn", 2, draws(0.7, 1))
    add_run(workdir / "results/2026", "gn", 2, draws(0.8, 2), epochs=8)
    answer = gnexp("report", "study=[a,2026]", "report.format=[pdf]")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "report: results/report/a-vs-2026/index.html"
    figures = {path.suffix for path in Path("results/report/a-vs-2026").glob("*_vs_batch.*")}
    assert ".pdf" in figures
    assert ".png" not in figures
