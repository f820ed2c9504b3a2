"""The article's claims get verdicts from a study's intervals, and from nothing else."""

import math

import numpy as np
import pytest
from evidence_series import analysis_of, draw, make_series
from scipy import stats
from test_report import BATCHES, add_gradients, add_run, config

from gnexp.analysis.article_claims import COLUMNS, FAILS, HOLDS, UNDECIDED
from gnexp.analysis.study_analysis import study_analysis
from gnexp.analysis.tables.build import build_tables
from gnexp.store.study import load_study


def claims_of(study, reference=32):
    return build_tables(study_analysis(load_study(study), reference))["article_claims"]


def rows_with(table, *words, **wanted):
    found = [r for r in table.rows if all(word in r["claim"] for word in words)]
    return [r for r in found if all(r[k] == v for k, v in wanted.items())]


def study_of(folder, accuracies, n=5, scatter=0.001, update_batch=None):
    """Write a run per (norm, batch): accuracies around the given ones, the same for each norm."""
    noise = np.linspace(-scatter, scatter, n)
    for index, ((norm, batch), level) in enumerate(accuracies.items()):
        values = level + np.roll(noise, index)
        settings = config(norm, batch, seeds=list(range(n)), update_batch=update_batch or batch)
        final = dict(enumerate(values.tolist()))
        name = f"{norm}-b{batch}-u{update_batch or batch}"
        add_run(folder, name, settings, range(n), accuracies=final)
    return folder


@pytest.fixture(scope="module")
def claims(demo):
    return claims_of(demo)


def test_a_norm_is_independent_of_the_batch_when_every_batch_is_flat(tmp_path):
    flat = {("gn", b): 0.8 for b in (1, 2, 32)}
    (row,) = rows_with(claims_of(study_of(tmp_path / "a", flat)), "does not depend")
    assert (row["verdict"], row["of"]) == (HOLDS, "GN(8)")
    falls = flat | {("gn", 1): 0.7}
    (row,) = rows_with(claims_of(study_of(tmp_path / "b", falls)), "does not depend")
    assert (row["verdict"], row["batch"]) == (FAILS, 1)
    assert row["value"] == pytest.approx(-0.1, abs=1e-9)
    assert "not at 1" in row["note"]


def test_scattered_seeds_decide_nothing(tmp_path):
    table = claims_of(study_of(tmp_path / "s", {("gn", 2): 0.8, ("gn", 32): 0.81}, scatter=0.05))
    assert [r["verdict"] for r in rows_with(table, "does not depend")] == [UNDECIDED]


def test_one_seed_gives_no_verdict(tmp_path):
    study_of(tmp_path / "s", {(n, b): 0.8 for n in ("bn", "gn") for b in (2, 32)}, n=1)
    assert claims_of(tmp_path / "s").rows == []


def test_bn_falls_and_gn_leads_at_the_small_batches_where_it_was_made_so(claims):
    falls = {r["batch"]: r for r in rows_with(claims, "BN loses accuracy")}
    assert sorted(falls) == [1, 2, 4]  # 8 is not below 8
    assert falls[2]["verdict"] == HOLDS
    assert falls[2]["hi"] <= 0 < falls[2]["n"].count("3")


def test_gn_leads_and_trails_bn_where_it_was_made_so(tmp_path):
    levels = {(norm, b): 0.8 for norm in ("bn", "gn") for b in (1, 2, 4, 8)}
    levels |= {("bn", 1): 0.6, ("bn", 2): 0.9}
    rows = rows_with(claims_of(study_of(tmp_path / "s", levels)), "GN is the more accurate")
    assert {r["batch"]: r["verdict"] for r in rows} == {1: HOLDS, 2: FAILS, 4: UNDECIDED}
    assert {r["family"] for r in rows} == {4}  # with batch 8, which the claim is not about


def test_gns_lead_is_decided_in_the_family_of_all_norms(tmp_path):
    levels = {(norm, b): 0.8 for norm in ("bn", "gn", "ln", "in") for b in (1, 2)}
    rows = rows_with(claims_of(study_of(tmp_path / "s", levels)), "GN is the more accurate")
    assert {r["family"] for r in rows} == {6}  # three norms at two batch sizes


def test_a_tuned_gn_against_an_untuned_bn_is_a_claim_with_a_warning():
    lines = [
        make_series("bn", draw({2: 60, 32: 80}, seed=1), tuned=False),
        make_series("gn", draw({2: 78, 32: 78}, seed=2), groups=8, tuned=True),
        make_series("ln", draw({2: 78, 32: 79}, seed=3), tuned=True),
        make_series("in", draw({2: 70, 32: 70}, seed=4), tuned=False),
    ]
    table = build_tables(analysis_of(lines))["article_claims"]
    (lead,) = rows_with(table, "GN is the more accurate")
    assert lead["note"] == "the rate of BN was not tuned"
    (between,) = rows_with(table, "between LN and IN")
    assert between["note"] == "the rate of IN was not tuned"


def test_a_smaller_rise_of_the_error_than_bns_is_robustness(tmp_path):
    for norm, rise in (("bn", 0.10), ("gn", 0.04), ("ln", 0.10), ("in", 0.20)):
        run = add_run(tmp_path / "s", norm, config(norm, 2), accuracies={0: 0.8, 1: 0.8, 2: 0.8})
        for name, lost in (("clean", 0.0), ("fog", rise)):
            run.add_rows(
                "shift.csv",
                [
                    {"seed": s, "corruption": name, "severity": int(name == "fog"), "n": 1000}
                    | {"accuracy": 0.8 - lost - (0.001 * s if lost else 0), "loss": 1.0}
                    for s in (0, 1, 2)
                ],
            )
    found = {r["of"]: r for r in rows_with(claims_of(tmp_path / "s"), "rises less")}
    verdicts = {of: row["verdict"] for of, row in found.items()}
    assert verdicts == {"GN(8)": HOLDS, "LN": UNDECIDED, "IN": FAILS}
    assert found["GN(8)"]["value"] == pytest.approx(-0.06, abs=1e-9)


@pytest.mark.parametrize(
    ("rises", "verdict"),
    [
        ([0.080, 0.085, 0.075], FAILS),  # 8 points lost
        ([0.001, 0.002, 0.003], HOLDS),
        ([0.000, 0.012, 0.024], UNDECIDED),
    ],
)
def test_invariance_of_a_layer_is_held_against_images_of_lower_contrast(tmp_path, rises, verdict):
    for norm in ("bn", "gn"):
        run = add_run(tmp_path / "s", norm, config(norm, 2), accuracies={0: 0.4, 1: 0.4, 2: 0.4})
        rows = [
            {"seed": seed, "corruption": name, "severity": severity, "n": 1000, "loss": 1.0}
            | {"accuracy": 0.4 - lost}
            for seed, rise in enumerate(rises)
            for name, severity, lost in (("clean", 0, 0.0), ("pure_contrast", 1, rise))
        ]
        run.add_rows("shift.csv", rows)
    (row,) = rows_with(claims_of(tmp_path / "s"), "contrast is lowered")  # not of BN, which pools
    assert (row["of"], row["verdict"], row["batch"]) == ("GN(8)", verdict, 2)
    interval = stats.t.interval(0.95, 2, loc=np.mean(rises), scale=stats.sem(rises))
    assert (row["lo"], row["hi"]) == pytest.approx(interval, rel=1e-9)  # a family of one
    share = f"{100 * np.mean(rises) / 0.3:.1f} % ["
    assert f"{share}" in row["note"]
    assert "of the accuracy above chance is lost" in row["note"]


def test_a_claim_on_batch_sizes_names_the_norm_alone_only_under_one_update_batch(tmp_path):
    levels = {(norm, b): 0.8 for norm in ("bn", "gn") for b in (2, 4, 32)}
    together = claims_of(study_of(tmp_path / "a", levels))
    fixed = claims_of(study_of(tmp_path / "b", levels, update_batch=32))
    for words, count in (("does not depend", 1), ("BN loses", 2), ("GN is the more", 2)):
        for table, said in ((together, "norm and optimizer together"), (fixed, "norm alone")):
            rows = rows_with(table, words)
            assert len(rows) == count
            assert all(f", {said}" in row["claim"] for row in rows)
    assert "norm alone in updates of 32 images" in rows_with(fixed, "BN loses")[0]["claim"]


@pytest.mark.parametrize(
    ("updates", "sentence"),
    [
        ([None], "follows the batch size: norm and optimizer together are behind"),
        ([32], "All batch sizes share one update_batch: the norm alone is behind"),
        ([None, 32], "Where update_batch follows the batch size, norm and optimizer together are"),
    ],
)
def test_captions_of_what_a_batch_costs_name_the_optimizer_unless_it_is_fixed(
    tmp_path, updates, sentence
):
    for update in updates:
        levels = {("gn", b): 0.8 for b in (2, 32)}
        study_of(tmp_path / "s", levels, update_batch=update)
    tables = build_tables(study_analysis(load_study(tmp_path / "s")))
    for name in ("flatness", "robustness"):
        assert sentence in tables[name].caption


def test_an_exponent_holds_only_when_its_whole_simultaneous_interval_is_near_what_was_said(claims):
    law = rows_with(claims, "1 / batch")
    assert [(r["of"], r["verdict"]) for r in law] == [("GN(8)", HOLDS)]  # made with -1.0
    gamma = {r["of"]: r for r in rows_with(claims, "gamma's gradient goes as")}
    assert gamma["GN(8)"]["verdict"] == FAILS  # the article's set does not grow with the batch: 0
    assert gamma["BN"]["verdict"] == FAILS  # -0.7 for -1
    assert {r["family"] for r in (*law, *gamma.values())} == {5}


def test_the_exponents_interval_is_bonferronis(tmp_path):
    run = add_run(tmp_path / "s", "gn-b64", config("gn", 64))
    add_gradients(run, "gn", BATCHES)
    analysis = study_analysis(load_study(tmp_path / "s"))
    (fit,) = [r for r in analysis.exponents if r["parameters"] == "all" and r["epoch"] == 4]
    (row,) = rows_with(build_tables(analysis)["article_claims"], "1 / batch")
    half = stats.t.ppf(1 - 0.05 / (2 * 3), fit["dof"]) * fit["se"]  # all, gamma, beta
    assert row["hi"] - row["value"] == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize(("factor", "verdict"), [(0.2, HOLDS), (5.0, FAILS), (1.0, UNDECIDED)])
def test_noise_against_bns_is_decided_by_intervals_that_do_not_meet(tmp_path, factor, verdict):
    for norm, level in (("bn", 1.0), ("gn", factor)):
        run = add_run(tmp_path / "s", f"{norm}-b2", config(norm, 2))
        for seed in (0, 1, 2):
            noise = level * (1 + 0.01 * seed)
            row = {"seed": seed, "epoch": 4, "at_batch": 2, "parameters": "gamma", "k": 64}
            row |= {"noise": noise, "noise_lo": 0.9 * noise, "noise_hi": 1.1 * noise}
            signal = 1 + 0.001 * seed
            row |= {"signal": signal, "signal_lo": 0.9, "signal_hi": 1.1, "weight_norm": 1.0}
            run.add_rows(
                "gradients.csv",
                [row | {"relative_noise": noise / signal, "noise_scale": 2 * noise}],
            )
    rows = rows_with(claims_of(tmp_path / "s"), "less noisy")
    assert [r["verdict"] for r in rows] == [verdict] * 2
    for row in rows:
        assert row["lo"] < row["value"] < row["hi"]
        assert row["value"] == pytest.approx(factor, rel=1e-6)


def test_gn_lies_between_ln_and_in_when_it_is_behind_one_and_ahead_of_the_other(tmp_path):
    levels = {("ln", 32): 0.80, ("gn", 32): 0.78, ("in", 32): 0.75}
    (row,) = rows_with(claims_of(study_of(tmp_path / "a", levels)), "between LN and IN")
    assert (row["verdict"], row["of"]) == (HOLDS, "GN(8)")
    above = levels | {("gn", 32): 0.85}
    (row,) = rows_with(claims_of(study_of(tmp_path / "b", above)), "between LN and IN")
    assert row["verdict"] == FAILS
    (row,) = rows_with(claims_of(study_of(tmp_path / "c", levels | {("gn", 32): 0.8})), "between")
    assert row["verdict"] == UNDECIDED


def test_every_row_has_an_interval_that_holds_its_value_and_says_its_n(claims):
    assert claims.rows
    for row in claims.rows:
        assert tuple(row) == COLUMNS
        assert row["verdict"] in (HOLDS, FAILS, UNDECIDED)
        assert row["n"]
        if row["value"] is not None:
            assert row["lo"] <= row["value"] <= row["hi"]
            assert not math.isnan(row["value"])
    assert all(all(isinstance(text, str) for text in texts) for texts in claims.texts())
