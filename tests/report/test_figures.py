"""Figures are fit for print: their width, type, formats, legends, and the same bytes."""

import itertools
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evidence_series import analysis_of, draw, make_series
from matplotlib.text import Text

from gnexp.analysis.cells import NORM_LABELS
from gnexp.analysis.lr_search import good_region as region
from gnexp.norms.registry import NORMS
from gnexp.report.figures import accuracy, style
from gnexp.report.figures.batch_vs_update_batch import two_batches
from gnexp.report.figures.gradient_noise import noise_vs_batch
from gnexp.report.figures.lr_search import accuracy_vs_lr, good_region
from gnexp.report.study_report import CAPTIONS

ROOT = Path(__file__).resolve().parents[2]
BATCHES = (1, 2, 4, 8, 32)
SMALLEST_PT = 6.5
RATES = [0.0125 * 2**k for k in range(8)]


def lines(norms=("bn", "gn", "ln", "in")):
    return [
        make_series(n, draw(dict.fromkeys(BATCHES, 70 - k), seed=k)) for k, n in enumerate(norms)
    ]


def tuning(norms=("bn", "gn")):
    tried, chosen = [], []
    for norm in norms:
        for batch in BATCHES:
            key = {"norm": norm, "groups": None, "channels_per_group": None}
            key |= {"batch": batch, "update_batch": batch}
            means = {lr: 0.8 - 0.03 * abs(np.log2(lr / 0.1)) for lr in RATES}
            for lr, mean in means.items():
                bounds = {"mean": mean, "lo": mean - 0.02, "hi": mean + 0.02}
                told = {"chosen": lr == 0.1, "at_edge": False, "n_diverged": int(lr > 1)}
                tried.append({**key, "lr": lr, "n": 3, **bounds, **told})
            chosen.append({**key, "lr": 0.1, "at_edge": norm == "bn", **region(means, 0.1)})
    return tried, chosen


def parts():
    rows = []
    for kind in ("running", "population_augmented"):
        for batch in BATCHES:
            numbers = dict(zip(("fall", "norm_part", "optimizer_part"), (0.1, 0.06, 0.04)))
            numbers |= {"reference": 0.8, "fixed": 0.74, "equal": 0.7}
            ends = {
                f"{k}{e}": v + d
                for k, v in numbers.items()
                for e, d in (("_lo", -0.01), ("_hi", 0.01))
            }
            row = {"norm": "bn", "series": "BN", "batch": batch, "update_batch": 64}
            rows.append({**row, "statistics": kind, "n_at_chance": 0, **numbers, **ends})
    return rows


def noise_by_kind():
    kinds, rows, fits = ("gamma", "beta", "conv", "linear"), [], []
    for kind, norm, epoch in itertools.product(kinds, ("bn", "gn"), (0, 4)):
        key = {"norm": norm, "groups": None, "channels_per_group": None}
        about = {"epoch": epoch, "weights": "shared weights", "parameters": kind}
        fits.append({**key, **about, "slope": -1.0, "lo95": -1.01, "hi95": -0.99})
        for batch in BATCHES:
            noise = {"noise": 1 / batch, "noise_lo": 0.9 / batch, "noise_hi": 1.1 / batch}
            rows.append({**key, **about, "at_batch": batch, **noise})
    return noise_vs_batch(rows, fits, kinds)


MAKERS = {
    "gradient_variance_by_kind": noise_by_kind,
    "accuracy_vs_batch": lambda: accuracy.accuracy_vs_batch(lines()),
    "many_series": lambda: accuracy.accuracy_vs_batch(
        lines(("bn", "gn", "ln", "in", "none", "LongNameOfANorm"))
    ),
    "accuracy_vs_lr": lambda: accuracy_vs_lr(tuning()[0]),
    "good_region": lambda: good_region(tuning()[1]),
    "two_batches": lambda: two_batches(parts()),
}
PAGE_WIDE = ("accuracy_vs_lr", "two_batches", "gradient_variance_by_kind")


@pytest.fixture(params=MAKERS, scope="module")
def named_figure(request):
    with style.drawing():
        yield request.param, MAKERS[request.param]()


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]


def test_a_figure_has_the_width_of_a_column_or_of_the_page_in_every_format(named_figure):
    name, figure = named_figure
    width = 7.0 if name in PAGE_WIDE else 3.5
    made = {kind: style.image_bytes(figure, kind) for kind in style.FORMATS}
    assert struct.unpack(">I", made["png"][16:20])[0] == pytest.approx(width * style.DPI, abs=1)
    assert float(re.search(rb'width="([\d.]+)pt"', made["svg"])[1]) == pytest.approx(72 * width)
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", made["pdf"])
    assert float(box[1]) == pytest.approx(72 * width, abs=0.1)


def test_no_type_is_too_small_for_print_and_no_text_leaves_the_figure(named_figure):
    _, figure = named_figure
    figure.draw_without_rendering()
    box = figure.bbox
    for text in texts(figure):
        assert text.get_fontsize() >= SMALLEST_PT, text.get_text()
        place = text.get_window_extent()
        if text.axes is None or text.axes.get_visible():
            assert place.x0 >= box.x0 - 1, text.get_text()
            assert place.x1 <= box.x1 + 1, text.get_text()


def test_pdf_text_is_embedded_as_truetype_and_without_a_date(named_figure):
    _, figure = named_figure
    made = style.image_bytes(figure, "pdf")
    format_number = made + b"".join(_streams(made))
    assert b"/CIDFontType2" in format_number or b"/TrueType" in format_number
    assert b"/Type3" not in format_number
    assert b"CreationDate" not in format_number


def _streams(pdf):
    for found in re.finditer(rb"stream\r?\n(.*?)endstream", pdf, re.S):
        try:
            yield zlib.decompress(found[1])
        except zlib.error:
            continue


def test_the_legend_covers_nothing_and_stays_within_the_figure(named_figure):
    name, figure = named_figure
    figure.draw_without_rendering()
    assert len(figure.legends) == (name != "good_region")  # which names its panels
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert all(box.y1 <= axis.get_tightbbox().y0 + 1 for axis in figure.axes)
        assert box.x0 >= figure.bbox.x0 - 1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= figure.bbox.y0 - 1


def test_an_interval_shorter_than_its_marker_still_shows_its_caps():
    with style.drawing():
        figure = accuracy.accuracy_vs_batch(lines())
    assert figure.axes[0].get_ylabel() == "Test accuracy (%)"
    container = figure.axes[0].containers[0]
    assert container[1][0].get_markersize() > container[0].get_markersize()


def test_a_format_that_is_none_is_refused_by_name():
    with style.drawing(), pytest.raises(ValueError, match="'eps' is none of png, svg, pdf"):
        style.image_bytes(MAKERS["good_region"](), "eps")


def test_only_the_formats_asked_for_are_written_and_the_page_gets_its_svg(tmp_path):
    shown = lines()
    for line in shown:
        for cell in line.cells:
            cell.record.metrics = pd.DataFrame()
    makers, captions = accuracy.makers(analysis_of(shown)), CAPTIONS
    drawn, _ = style.write_figures(makers, captions, tmp_path, ["pdf"])
    assert [p.name for p in tmp_path.iterdir()] == ["accuracy_vs_batch.pdf"]
    assert drawn["accuracy_vs_batch"][0].startswith(b"<?xml")


def test_a_chosen_rate_at_the_edge_is_drawn_open():
    tried, _ = tuning(("bn",))
    for row in tried:
        row["chosen"] = row["at_edge"] = row["lr"] == RATES[0]
    with style.drawing():
        figure = accuracy_vs_lr(tried)
    edged = [a for a in figure.axes[0].lines if a.get_markeredgecolor() == "black"]
    assert any(line.get_markerfacecolor() == "white" for line in edged)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "chosen, at the edge" in labels
    assert "chosen" not in labels


def test_every_rate_has_a_tick_and_the_labels_have_room():
    with style.drawing():
        figure = accuracy_vs_lr(tuning()[0])
    figure.draw_without_rendering()
    axis = figure.axes[4]
    assert sorted({*axis.get_xticks(), *axis.get_xticks(minor=True)}) == RATES
    boxes = [t.get_window_extent() for t in axis.get_xticklabels() if t.get_text()]
    assert len(boxes) == len(RATES)
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_a_norm_keeps_its_colour_and_marker_whatever_else_is_drawn():
    alone, among = (style.style_of("gn", norms) for norms in (["gn"], ["mine", "bn", "gn"]))
    assert alone == among == style.STYLES["gn"]
    names = ["bn", "gn", "ln", "in", "none", "mine", "yours"]
    styles = [style.style_of(name, names) for name in names]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == 7


def test_every_norm_of_the_table_has_a_short_name_and_a_style_of_its_own():
    assert list(NORM_LABELS) == list(NORMS)
    assert set(style.STYLES) == set(NORMS)
    assert len(set(NORM_LABELS.values())) == len(set(style.STYLES.values())) == len(NORMS)
    assert not set(style.STYLES.values()) & set(style.OTHER_STYLES)
    assert all((ROOT / "configs" / "norm" / f"{name}.yaml").is_file() for name in NORMS)
