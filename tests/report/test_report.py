"""The report says what the runs hold: tables, figures and one page, at any moment of a study."""

import csv
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from evidence_series import analysis_of, make_series
from study_reports import build_report, plain_summary

from gnexp.analysis import cells as grouping
from gnexp.analysis.gradient_noise import check_rows, exponent_rows, gradient_rows
from gnexp.analysis.study_analysis import study_analysis
from gnexp.analysis.tables.build import build_tables
from gnexp.report.figures import style
from gnexp.report.figures.accuracy import plot_preview
from gnexp.report.fingerprint import STAMP
from gnexp.report.text.accuracy_matrix import MatrixCell
from gnexp.store.run import Run
from gnexp.store.study import load_study

CLASSES = list("abcdefghij")
BATCHES = (1, 2, 4, 8, 32, 64)
TRUE_EXPONENT = {"bn": -0.7, "gn": -1.0, "ln": -1.0, "in": -1.0}
TRUE_ACCURACY = {"bn": 0.80, "gn": 0.78, "ln": 0.765, "in": 0.75}


def config(norm, batch, **changes):
    resolved = {
        "norm": {"name": norm, "eps": 1e-05},
        "groups": 8 if norm == "gn" else None,
        "channels_per_group": None,
        "groups_fallback": None,
        "model": {"name": "tiny", "width": None},
        "data": {"name": "shapes10", "title": None, "augment": "crop_flip"},
        "batch": batch,
        "update_batch": batch,
        "seeds": [0, 1, 2],
        "epochs": 4,
        "lr": 0.1,
        "lr_rule": "linear",
        "gradients": None,
        "study": "demo",
    }
    return {**resolved, **changes}


def accuracy(norm, batch, rng):
    falls = {1: 0.30, 2: 0.06, 4: 0.015}.get(batch, 0.0) if norm == "bn" else 0.0
    return TRUE_ACCURACY[norm] - falls + rng.normal(0, 0.003)


def add_run(study, name, settings, seeds=(0, 1, 2), diverged=(), accuracies=None, commit="abc1234"):
    """Write one run whose numbers follow from its settings and its name."""
    rng = np.random.default_rng([ord(c) for c in name])
    run = Run.create(study / name)
    run.write_config(settings)
    run.write_provenance(
        {"commit": commit, "dirty": False, "gnexp": "0.1.0", "torch": "2.14.1", "device": "cpu"}
        | {"command": "gnexp train -m norm=bn,gn", "started": "2026-11-22T16:00:00"}
    )
    data = {
        "title": "Shapes <10>",
        "checksum": "0123456789abcdef",
        "train": 5120,
        "test": 1_000_000,
    }
    head = {"run": name, "gnexp": "0.1.0", "config": settings, "parameters": 123}
    head |= {"groups_per_layer": {}, "data": {**data, "classes": CLASSES}}
    norm, batch = settings["norm"]["name"], settings["batch"]
    for seed in seeds:
        final = accuracy(norm, batch, rng) if accuracies is None else accuracies[seed]
        status = "diverged" if seed in diverged else "complete"
        rows = [
            {"seed": seed, "epoch": epoch, "examples_seen": 5120 * epoch, "lr": 0.1 / epoch}
            | {"train_loss": 2.3 / epoch + rng.normal(0, 0.02), "train_acc": final - 0.3 / epoch}
            | {"test_loss": 1.1, "test_acc": final - 0.4 / epoch + 0.1, "time_s": 3.0}
            for epoch in (1, 2, 3, 4)
        ]
        run.add_rows("metrics.csv", rows[:2] if seed in diverged else rows)
        numbers = {"status": status, "test_acc": final, "test_acc_median5": final}
        if seed in diverged:
            numbers = {"status": status, "test_acc": math.nan, "test_acc_median5": math.nan}
        numbers |= {"test_loss": 0.9, "train_loss": 0.5, "train_acc": 0.9, "epochs": 4}
        numbers |= {"examples_seen": 20480, "train_time_s": 40 + 200 / batch + rng.normal(0, 1)}
        numbers |= {"device": "cpu", "execution": "eager", "stack": 3}
        run.set_status(seed, status, "loss became nan in epoch 2" if seed in diverged else "")
        run.add_result(seed, numbers, **head)
    return run


def gradients(norm, seed, epoch, at_batch, rng, level=5.0, error=0.05, kind="all", signal=0.3):
    exponent = TRUE_EXPONENT.get(norm, -1.0)
    noise = level * (1 + seed) * at_batch**exponent * math.exp(rng.normal(0, error))
    half = 2.0395 * error * noise  # t_{0.975, 31}
    return {
        **{"seed": seed, "epoch": epoch, "at_batch": at_batch, "parameters": kind, "k": 256},
        **{"noise": noise, "noise_lo": noise - half, "noise_hi": noise + half},
        **{"signal": signal, "signal_lo": signal - 0.2, "signal_hi": signal + 0.2},
        **{"relative_noise": noise / signal, "noise_scale": at_batch * noise / signal},
        "weight_norm": 12.0,
    }


def add_gradients(run, norm, batches, epochs=(0, 4)):
    rng = np.random.default_rng([ord(c) for c in run.name])
    levels = {"all": 5.0, "gamma": 0.4, "beta": 0.3, "conv": 4.0, "linear": 0.6, "conv1": 0.2}
    for seed in (0, 1, 2):
        run.add_rows(
            "gradients.csv",
            (
                gradients(norm, seed, epoch, b, rng, level, kind=kind)
                for epoch in epochs
                for b in batches
                for kind, level in levels.items()
            ),
        )
        if norm != "bn":
            run.add_rows(
                "covariance.csv",
                (
                    {"seed": seed, "epoch": e, "parameters": p, "n": 512, "trace": v * (1 + seed)}
                    for e in epochs
                    for p, v in levels.items()
                ),
            )


def make_demo(study):
    """Four norms x six batches x three seeds, one seed diverged, a failed and a cut run."""
    for norm in TRUE_ACCURACY:
        for batch in BATCHES:
            diverged = (2,) if (norm, batch) == ("bn", 1) else ()
            run = add_run(study, f"{norm}-b{batch}", config(norm, batch), diverged=diverged)
            if batch == 64 and norm in ("bn", "gn"):
                add_gradients(run, norm, BATCHES)
    add_failed(study)
    add_unfinished(study)
    return study


def add_failed(study):
    failed = Run.create(study / "none-b1")
    failed.write_config(config("none", 1))
    for seed in (0, 1, 2):
        failed.set_status(seed, "failed", "RuntimeError: <b>boom</b> & more")


def add_unfinished(study):
    running = Run.create(study / "none-b2")
    running.write_config(config("none", 2))
    running.set_status(0, "running")
    running.add_rows(
        "metrics.csv",
        [
            {"seed": 0, "epoch": 1, "examples_seen": 5120, "lr": 0.1, "train_loss": 2.0}
            | {"train_acc": 0.2, "test_loss": 2.0, "test_acc": 0.25, "time_s": 9.0}
        ],
    )


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def only(rows, **wanted):
    found = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def frozen(*values):
    return dict(enumerate(values))


def test_every_run_and_seed_is_one_row_with_its_status_and_reason(report):
    rows = rows_of(report["runs.csv"])
    assert len(rows) == 4 * 6 * 3 + 3 + 3
    assert only(rows, run="none-b1", seed="0")["why"] == "RuntimeError: <b>boom</b> & more"
    assert only(rows, run="bn-b1", seed="2")["status"] == "diverged"
    unfinished = only(rows, run="none-b2", seed="0")
    assert (unfinished["status"], unfinished["epochs"], unfinished["test_acc"]) == (
        "running",
        "1",
        "",
    )
    assert only(rows, run="none-b2", seed="1")["status"] == "missing"
    first = list(rows[0])
    assert " ".join(first[:9]) == "run norm groups model data batch update_batch lr seed"
    assert "channels_per_group" not in first


def test_a_cell_is_the_mean_over_its_seeds_with_the_t_interval(demo, report):
    values = [n["test_acc"] for n in Run(demo / "gn-b2").result()["seeds"].values()]
    row = only(rows_of(report["accuracy.csv"]), norm="gn", batch="2")
    half = 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)  # t_{0.975, 2}
    assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-12)
    assert float(row["hi"]) - float(row["mean"]) == pytest.approx(half, rel=1e-9)
    assert (row["n"], row["n_diverged"], row["groups"]) == ("3", "0", "8")
    assert row["interval"] == "t over seeds"


def test_a_diverged_seed_leaves_the_mean_and_is_counted(demo, report):
    seeds = Run(demo / "bn-b1").result()["seeds"]
    row = only(rows_of(report["accuracy.csv"]), norm="bn", batch="1")
    survivors = [seeds["0"]["test_acc"], seeds["1"]["test_acc"]]
    assert float(row["mean"]) == pytest.approx(np.mean(survivors), rel=1e-12)
    assert (row["n"], row["n_diverged"]) == ("2", "1")
    assert "1 of 3 diverged" in report["accuracy.md"].read_text()
    assert "1 of 3 diverged" in report["index.html"].read_text()


def test_no_accuracy_of_the_matrix_reaches_beyond_0_to_100():
    line = make_series("bn", {1: [2.0, 9.0, 30.0], 2: [60.0, 61.0, 62.0], 32: [99.0, 99.9, 95.0]})
    texts = [MatrixCell(cell).text() for cell in line.cells]
    assert texts[0] == "13.7 [0.0, 49.9] (3)"
    assert texts[1].startswith("61.0+-2.5")
    assert texts[2].endswith(", 100.0] (3)")


def test_one_seed_has_an_interval_over_test_images_and_no_verdict(tmp_path):
    for batch in (2, 32):
        add_run(tmp_path / "s", f"gn-b{batch}", config("gn", batch, seeds=[0]), (0,))
    files = build_report(tmp_path / "s")
    row = rows_of(files["accuracy.csv"])[0]
    assert row["interval"] == "binomial over test images"
    assert float(row["lo"]) < float(row["mean"]) < float(row["hi"])
    assert row["sd"] == ""
    assert rows_of(files["flatness.csv"])[0]["verdict"] == "undecided"
    assert "at least two seeds" in files["index.html"].read_text()
    assert "n = 1" in plain_summary(tmp_path / "s")


def rows_in(study, table):
    """The rows of a table, for which no figure is drawn."""
    return build_tables(study_analysis(load_study(study)))[table].rows


def test_runs_that_differ_in_any_setting_are_never_averaged_together(tmp_path):
    study = tmp_path / "s"
    add_run(study, "a", config("gn", 2), accuracies=frozen(0.5, 0.5, 0.5))
    add_run(study, "b", config("gn", 2, lr=0.2), accuracies=frozen(0.6, 0.6, 0.6))
    add_run(study, "c", config("gn", 2, groups=None, channels_per_group=4))
    noisier = {"name": "gn", "eps": 1e-3}
    add_run(study, "d", {**config("gn", 2), "norm": noisier}, accuracies=frozen(0.7, 0.7, 0.7))
    rows = rows_in(study, "accuracy")
    assert [row["n"] for row in rows] == [3] * 4
    assert only(rows, lr=0.2)["mean"] == pytest.approx(0.6, rel=1e-12)
    assert only(rows, **{"norm.eps": 1e-3})["mean"] == pytest.approx(0.7, rel=1e-12)
    assert only(rows, channels_per_group=4)["groups"] is None


def test_runs_with_the_same_settings_and_seeds_stay_apart_by_name(tmp_path):
    for name in ("a", "b"):
        add_run(tmp_path / "s", name, config("gn", 2))
    rows = rows_in(tmp_path / "s", "accuracy")
    assert sorted((row["run"], row["n"]) for row in rows) == [("a", 3), ("b", 3)]


def test_an_own_norm_goes_by_the_last_part_of_its_import_path(tmp_path):
    own = {"name": "custom", "_target_": "my_norms.FilterNorm", "eps": 1e-05}
    settings = {**config("gn", 2, groups=None), "norm": own}
    add_run(tmp_path / "s", "own", settings, accuracies=frozen(0.5, 0.5, 0.5))
    assert rows_in(tmp_path / "s", "accuracy")[0]["norm"] == "FilterNorm"


def test_a_fixed_update_batch_and_one_that_follows_the_batch_are_two_series(tmp_path):
    for batch in (2, 64):
        add_run(tmp_path / "s", f"b{batch}", config("gn", batch))
    add_run(tmp_path / "s", "b2-u64", config("gn", 2, update_batch=64))
    lines = grouping.series(grouping.cells(load_study(tmp_path / "s").runs))
    names = {line.label: [c.record.name for c in line.cells] for line in lines}
    assert names == {
        "GN(8), update_batch=batch": ["b2", "b64"],
        "GN(8), update_batch=64": ["b2-u64", "b64"],
    }
    assert {row["batch"] for row in analysis_of(lines, 64).flatness} == {2}


def test_a_setting_that_changes_with_the_batch_size_is_shown_beside_the_comparison(tmp_path):
    add_run(tmp_path / "s", "b2", config("gn", 2, lr=0.05))
    add_run(tmp_path / "s", "b32", config("gn", 32))
    assert rows_in(tmp_path / "s", "flatness")[0]["differs"] == "lr"


def test_without_the_reference_batch_the_table_says_so_and_no_other_reference_is_chosen(demo):
    lines = grouping.series(grouping.cells(load_study(demo).runs))
    assert analysis_of(lines, 128).flatness == []
    assert {row["reference_batch"] for row in analysis_of(lines, 8).flatness} == {8}


def test_the_fitted_exponents_are_those_the_noise_was_made_with(report):
    rows = rows_of(report["exponents.csv"])
    assert len(rows) == 2 * 2 * 5
    for row in rows:
        assert float(row["lo997"]) <= TRUE_EXPONENT[row["norm"]] <= float(row["hi997"])
        assert row["weights"] == "shared weights"
        assert row["expected"] == ("" if row["norm"] == "bn" else "-1.0")


def test_batch_one_of_bn_is_left_out_of_its_fit_and_stands_apart(report):
    rows = [row for row in rows_of(report["exponents.csv"]) if row["parameters"] == "all"]
    for row in rows:
        bn = row["norm"] == "bn"
        assert row["at_batches"] == ("2 4 8 32 64" if bn else "1 2 4 8 32 64")
        assert row["n_points"] == ("15" if bn else "18")
        assert (row["batch_1_ratio"] != "") == bn
    assert float(rows[0]["batch_1_ratio"]) == pytest.approx(1.0, abs=0.15)  # same law here


def test_exponents_at_own_weights_are_fitted_across_runs_and_called_so(tmp_path):
    for batch in (2, 4, 8):
        add_gradients(
            add_run(tmp_path / "s", f"b{batch}", config("gn", batch)), "gn", [batch], (4,)
        )
    cells = grouping.cells(load_study(tmp_path / "s").runs)
    rows = exponent_rows(cells, grouping.series(cells))
    assert {row["weights"] for row in rows} == {"own weights"}
    assert {row["n_points"] for row in rows} == {9}
    assert {row["expected"] for row in rows} == {None}  # the networks differ, not only the batch
    assert all(row["lo997"] <= -1 <= row["hi997"] for row in rows)


def test_exactly_zero_gradients_stay_out_of_the_fit(tmp_path):
    run = add_run(tmp_path / "s", "b8", config("gn", 8))
    zero = dict.fromkeys(("noise", "noise_lo", "noise_hi", "signal", "signal_lo", "signal_hi"), 0.0)
    rng = np.random.default_rng(0)
    gammas = ({**gradients("gn", 0, 0, b, rng, kind="gamma"), **zero} for b in (2, 4, 8))
    run.add_rows("gradients.csv", gammas)
    run.add_rows("gradients.csv", (gradients("gn", 0, 0, b, rng) for b in (2, 4, 8)))
    cells = grouping.cells(load_study(tmp_path / "s").runs)
    assert {row["parameters"] for row in exponent_rows(cells, [])} == {"all"}
    assert "gamma" in {row["parameters"] for row in gradient_rows(cells)}


def test_the_noise_scale_has_no_upper_end_when_the_signals_interval_reaches_zero(tmp_path):
    run = add_run(tmp_path / "s", "b8", config("gn", 8), seeds=(0,))
    rng = np.random.default_rng(0)
    unclear = gradients("gn", 0, 4, 8, rng, signal=0.1)  # interval [-0.1, 0.3]
    run.add_rows("gradients.csv", [unclear])
    run.add_rows("gradients.csv", [gradients("gn", 0, 4, 4, rng, signal=1.0)])
    clear, unclear = gradient_rows(grouping.cells(load_study(tmp_path / "s").runs))
    assert unclear["noise_scale_hi"] == math.inf
    assert unclear["noise_scale"] == pytest.approx(8 * unclear["noise"] / 0.1, rel=1e-12)
    assert clear["noise_scale_lo"] < clear["noise_scale"] < clear["noise_scale_hi"] < math.inf
    assert clear["interval"] == "jackknife over draws"
    assert clear["weight_norm2_noise"] == pytest.approx(144 * clear["noise"], rel=1e-12)


def test_batch_times_noise_is_checked_against_the_trace_with_its_own_interval(tmp_path):
    run = add_run(tmp_path / "s", "b8", config("gn", 8), seeds=(0,))
    row = {**gradients("gn", 0, 4, 8, np.random.default_rng(0)), "noise": 1.0}
    run.add_rows("gradients.csv", [{**row, "noise_lo": 0.9, "noise_hi": 1.1}])
    for trace, agree in ((8.0, True), (9.2, True), (9.4, False), (6.6, False)):
        row = {"seed": 0, "epoch": 4, "parameters": "all", "n": 9, "trace": trace}
        run.add_rows("covariance.csv", [row])
        (found,) = check_rows(grouping.cells(load_study(tmp_path / "s").runs))
        # t_{0.9985, 31} / t_{0.975, 31} = 3.2221 / 2.0395: the half-width is 8 * 0.1 * 1.580
        assert found["hi997"] == pytest.approx(8 + 0.8 * 1.580, abs=0.01)
        assert (found["agree"], found["ratio"]) == (agree, pytest.approx(8 / trace, rel=1e-12))


def test_rendered_tables_are_percent_and_csv_is_not(demo, report):
    mean = float(only(rows_of(report["accuracy.csv"]), norm="ln", batch="4")["mean"])
    assert 0 < mean < 1
    for name in ("accuracy.md", "accuracy.tex", "index.html"):
        assert f"{100 * mean:.2f}" in report[name].read_text()


class Page(HTMLParser):
    """Collect the elements of a page, and whether they close in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append({"tag": tag, **dict(attributes)})
        self.open += [tag] * (tag not in self.VOID)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_network_and_no_other_file(report):
    text = report["index.html"].read_text()
    page = Page(text)
    assert page.open == []
    images = [each for each in page.found if each["tag"] == "img"]
    assert len(images) == 5
    assert all(i["src"].startswith("data:image/svg+xml,") and i["alt"] for i in images)
    sources = {e[key] for e in page.found for key in ("src", "href", "srcset") if key in e}
    anchors = {f"#{each['id']}" for each in page.found if "id" in each}
    assert {s for s in sources if not s.startswith("data:")} <= {*report, *anchors}
    assert "url(" not in text
    assert "@import" not in text


def test_what_users_and_errors_say_is_escaped_on_the_page(report):
    text = report["index.html"].read_text()
    assert "<b>boom" not in text
    assert "&lt;b&gt;boom" in text
    assert "Shapes &lt;10&gt;" in text


def test_the_same_study_gives_the_same_bytes(tmp_path):
    study = tmp_path / "s"
    for norm, batch in (("bn", 2), ("gn", 32)):
        add_gradients(add_run(study, norm, config(norm, batch)), norm, (2, 4), epochs=(4,))
    first = {name: path.read_bytes() for name, path in build_report(study).items()}
    (study / "report" / STAMP).unlink()  # or it would be left as it is
    code = "import sys; sys.path.insert(0, 'tests'); from study_reports import build_report; "
    code += "build_report(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(study)], check=True)  # other hash seed
    for name, content in first.items():
        assert (study / "report" / name).read_bytes() == content, name


def test_a_study_with_nothing_finished_still_has_a_report(tmp_path):
    add_failed(tmp_path / "s")
    add_unfinished(tmp_path / "s")
    files = build_report(tmp_path / "s")
    assert not [name for name in files if name.endswith(("png", "svg"))]
    assert "No seed is finished yet" in files["index.html"].read_text()
    assert plain_summary(tmp_path / "s") == "no seed is finished yet"


def test_a_figure_of_an_earlier_report_goes_when_its_data_went(tmp_path):
    run = add_run(tmp_path / "s", "b8", config("gn", 8), seeds=(0,))
    assert build_report(tmp_path / "s")["accuracy_vs_batch.svg"].is_file()
    run.drop_seed(0)
    assert "accuracy_vs_batch.svg" not in build_report(tmp_path / "s")
    assert not (tmp_path / "s" / "report" / "accuracy_vs_batch.svg").exists()


def test_of_more_than_40_series_those_of_the_largest_setting_are_drawn_and_it_says_so(tmp_path):
    for epochs in range(1, 15):
        for norm in ("bn", "gn", "ln"):
            for batch in (2, 4) if epochs == 7 else (2,):
                settings = config(norm, batch, epochs=epochs)
                add_run(tmp_path / "s", f"{norm}-{batch}-{epochs}", settings, seeds=(0,))
    page = build_report(tmp_path / "s")["index.html"].read_text()
    assert "Of 42 series the 3 with epochs=7 are drawn; the tables have all." in page


def test_another_margin_makes_the_report_anew_and_its_answer_says_it(tmp_path):
    study = tmp_path / "s"
    for norm in ("bn", "gn"):
        add_run(study, norm, config(norm, 2))
    assert "beyond 0.5 points" in build_report(study)["index.html"].read_text()
    assert "beyond 2.5 points" in build_report(study, margin=0.025)["index.html"].read_text()
    assert "beyond 2.5 points" in plain_summary(study, margin=0.025)
    assert "beyond 0.5 points" in build_report(study)["index.html"].read_text()


def test_runs_of_different_versions_are_announced(tmp_path, report):
    add_run(tmp_path / "s", "a", config("gn", 2), commit="abc")
    add_run(tmp_path / "s", "b", config("gn", 4), commit="def")
    page = build_report(tmp_path / "s")["index.html"].read_text()
    assert "different commits: abc; def" in page
    assert "The runs were made with different" not in report["index.html"].read_text()


def test_a_corrupt_file_is_named_on_the_page_and_the_rest_is_reported(tmp_path):
    run = add_run(tmp_path / "s", "a", config("gn", 2))
    (run.folder / "gradients.csv").write_text("seed\n1\n")
    (run.folder / "digests.json").unlink()
    build_report(tmp_path / "s")
    page = (tmp_path / "s" / "report" / "index.html").read_text()
    assert "gradients.csv is corrupt (its header is not seed,epoch" in page
    assert "GN(8)" in page


def test_the_terminal_table_is_aligned_ascii_with_means_intervals_and_n(demo):
    text = plain_summary(demo)
    assert text.isascii()
    _, header, *body = text.splitlines()[:6]
    assert header.split() == ["batch", *map(str, BATCHES)]
    assert [line.split()[0] for line in body] == ["BN", "GN(8)", "LN", "IN"]
    assert len({len(line) for line in (header, *body)}) == 1
    assert "(2, 1 of 3 diverged)" in body[0]
    assert re.search(r"78\.\d\+-\d\.\d \(3\)", body[1])


def make_trials(study, held_out=0.1):
    """Two norms at three batch sizes, every run judged on images held out of its training set."""
    data = {"name": "shapes10", "title": None, "augment": "crop_flip", "validation": held_out}
    for norm in ("bn", "gn"):
        for batch in (1, 8, 32):
            seeds = [0, 1] if batch > 1 else [0]
            settings = config(norm, batch, data=data, seeds=seeds)
            add_run(study, f"{norm}-b{batch}", settings, seeds=seeds)
    return study


def test_a_study_of_validation_runs_calls_nothing_test(tmp_path, monkeypatch):
    said_test = re.compile(r"\btest(?=\s(?:accurac|image|loss|set\b))", re.I)
    labels, image_bytes = [], style.image_bytes

    def spy(figure, kind):
        labels.extend(axes.get_ylabel().replace("\n", " ") for axes in figure.axes)
        return image_bytes(figure, kind)

    monkeypatch.setattr(style, "image_bytes", spy)
    study = make_trials(tmp_path / "trials")
    files = build_report(study)
    told = {name: p.read_text() for name, p in files.items() if name.endswith((".md", ".tex"))}
    told["page"] = files["index.html"].read_text()
    told["terminal"], told["figures"] = plain_summary(study), "; ".join(labels)
    of_page = "Every accuracy here is of images held out of the training set, not of test images."
    assert told["page"].count(of_page) == 1
    told["page"] = told["page"].replace(of_page, "")
    assert {n: found for n, text in told.items() if (found := said_test.findall(text))} == {}
    for name, wanted in (
        ("accuracy.md", "| Validation accuracy (%) |"),
        ("accuracy.md", "binomial over validation images"),
        ("runs.md", "| Validation loss (nats) |"),
        ("page", "on the validation images after the last epoch"),
        ("page", '<p class="caption">Validation accuracy in percent'),
        ("page", "<figcaption>Validation accuracy of the last epoch"),
        ("terminal", "interval over validation images"),
        ("figures", "Validation accuracy (%)"),
        ("figures", "Train loss (nats)"),
    ):
        assert wanted in told[name], (name, wanted)
    assert {"test_acc", "test_loss"} <= set(rows_of(files["runs.csv"])[0])


def test_runs_judged_on_test_and_on_validation_images_are_told_apart(tmp_path):
    study = make_trials(tmp_path / "s", None)
    data = {"name": "shapes10", "title": None, "augment": "crop_flip", "validation": 0.1}
    add_run(study, "trial", config("gn", 8, data=data, seeds=[7]), seeds=(7,))
    files = build_report(study)
    table = files["runs.md"].read_text()
    assert "| Judged on | Accuracy, last epoch (%) |" in table
    assert (table.count("| validation |"), table.count("| test |")) == (1, 10)
    assert "| Test accuracy (%) |" in files["accuracy.md"].read_text()


def test_the_preview_shows_ten_images_of_each_class(tmp_path):
    rng = np.random.default_rng(0)
    x_NCHW = rng.integers(0, 256, size=(60, 3, 32, 32), dtype=np.uint8)
    path = tmp_path / "preview.png"
    plot_preview(path, x_NCHW, np.arange(60) % 3, ["cat", "dog", "eel"], "Three classes")
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    plot_preview(path, x_NCHW, np.arange(60) % 3, ["cat", "dog", "eel"], "Three classes")
    assert path.read_bytes() == first
