"""The page works in a real browser: by keyboard, on a phone, on paper, and without a script."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from page_browser import CHROMIUM, Browser
from study_reports import build_report
from test_report import add_gradients, add_run, config

from gnexp.analysis.study_analysis import study_analysis
from gnexp.analysis.tables.build import build_tables
from gnexp.analysis.tables.table import Column, Table
from gnexp.report.page import render as page
from gnexp.report.page.render import LONG, pack
from gnexp.store.study import load_study

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
TABLE = "document.querySelector('table[aria-label=\"{}\"]')"
SHOWN = "[...{}.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[{}].textContent)"
PM = "\u00b1"
NUMBERS = [f"78.3 {PM} 0.4", "", f"9.1 {PM} 2.0", "[-3.2, 1.0]", "\u221e", f"9.1 {PM} 7.0", "100.0"]
TIED = [f"9.1 {PM} 2.0", f"9.1 {PM} 7.0"]  # stable
LOW, HIGH = "[-3.2, 1.0]", f"78.3 {PM} 0.4"
MIXED = ["-2.1 [-3, -1]", "same rate", "10 %", "", "3 diverged", "-12.5", "2 of 3", "0.4 (paired)"]
FIRST_NUMBERS = ["-12.5", "-2.1 [-3, -1]", "0.4 (paired)", "2 of 3", "10 %"]
MATRIX = ["78.3<small>n = 1</small>", "9.1<small>n = 1</small>", "3 diverged"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "demo"
    for norm in ("bn", "gn"):
        for batch in (1, 4, 32):
            diverged = (2,) if (norm, batch) == ("bn", 1) else ()
            run = add_run(folder, f"{norm}-b{batch}", config(norm, batch), diverged=diverged)
        add_gradients(run, norm, (2, 4, 8), epochs=(4,))
    return folder


@pytest.fixture(scope="module")
def url(study):
    return build_report(study)["index.html"].as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def shown(browser, label, column):
    return browser.value(SHOWN.format(TABLE.format(label), column))


def press_header(browser, label, column, key):
    table = TABLE.format(label)
    browser.value(f"{table}.closest('details')?.setAttribute('open', '')")
    browser.value(f"{table}.tHead.rows[0].cells[{column}].querySelector('button').focus()")
    browser.press(key, "\r" if key == "Enter" else key)


@needs_browser
@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_opens_without_a_complaint_or_a_request(browser, url, width):
    for dark in (False, True):
        browser.open(url, width=width, dark=dark)
        assert browser.complaints == []
        assert browser.requests == [url]


@needs_browser
def test_a_complaint_and_a_request_would_be_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<link rel=icon href='data:,'><script src=other.js></script><script>x()</script>"
    )
    browser.open(bad.as_uri())
    assert "x is not defined" in json.dumps(browser.complaints)
    assert (tmp_path / "other.js").as_uri() in browser.requests


@needs_browser
@pytest.mark.parametrize("key", ["Enter", " "])
def test_a_header_sorts_by_number_from_the_keyboard_and_back_again(browser, url, key):
    browser.open(url)
    column, before = 2, shown(browser, "Accuracy", 2)
    press_header(browser, "Accuracy", column, key)
    assert shown(browser, "Accuracy", column) == sorted(before, key=int)
    head = TABLE.format("Accuracy") + f".tHead.rows[0].cells[{column}].getAttribute('aria-sort')"
    assert browser.value(head) == "ascending"
    press_header(browser, "Accuracy", column, key)
    assert shown(browser, "Accuracy", column) == sorted(before, key=int, reverse=True)
    assert browser.value(head) == "descending"
    press_header(browser, "Accuracy", column, key)
    assert shown(browser, "Accuracy", column) == before
    assert browser.value(head) is None


@needs_browser
@pytest.mark.parametrize(
    ("cells", "rising", "falling"),
    [
        (
            NUMBERS,
            [LOW, *TIED, HIGH, "100.0", "\u221e", ""],
            ["\u221e", "100.0", HIGH, *TIED, LOW, ""],
        ),
        (
            MIXED,
            [*FIRST_NUMBERS, "3 diverged", "same rate", ""],
            [*FIRST_NUMBERS[::-1], "same rate", "3 diverged", ""],
        ),
        (
            MATRIX,  # by the means and not by the seeds beside them
            ["9.1n = 1", "78.3n = 1", "3 diverged"],
            ["78.3n = 1", "9.1n = 1", "3 diverged"],
        ),
    ],
)
def test_sorting_reads_numbers_among_signs_and_words(
    browser, url, tmp_path, cells, rising, falling
):
    rows = "".join(f"<tr><td>{text}</td></tr>" for text in cells)
    table = '<div class="scroll"><table aria-label="odd"><thead><tr><th>x</th></tr></thead>'
    table += f"<tbody>{rows}</tbody></table></div>"
    here = '<h2 id="accuracy">'
    odd = tmp_path / "odd.html"
    odd.write_text(Path(unquote(urlparse(url).path)).read_text().replace(here, table + here))
    browser.open(odd.as_uri())
    for wanted in (rising, falling):
        press_header(browser, "odd", 0, "Enter")
        assert shown(browser, "odd", 0) == wanted


@needs_browser
def test_rows_are_filtered_by_words_and_by_choice_and_counted_aloud(browser, url):
    browser.open(url)
    tools = TABLE.format("Accuracy") + ".closest('.scroll').previousElementSibling"
    browser.value(TABLE.format("Accuracy") + ".closest('details').open = true")
    browser.value(f"{tools}.querySelector('input').focus()")
    browser.type("gn")
    assert set(shown(browser, "Accuracy", 0)) == {"GN"}
    choose = "(s => { s.value = '4'; s.dispatchEvent(new Event('change')); })"
    browser.value(f"{choose}({tools}.querySelector('select[aria-label^=Batch]'))")
    assert shown(browser, "Accuracy", 2) == ["4"]
    count = f"{tools}.querySelector('[aria-live=polite]').textContent"
    assert browser.value(count) == "1 of 6 rows"


@needs_browser
def test_a_phone_never_scrolls_the_page_sideways(browser, url):
    browser.open(url, width=375, height=800)
    browser.value("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert browser.value("document.documentElement.scrollWidth") == 375
    small = "[...document.querySelectorAll('button, summary, nav a, select, input')]"
    small += ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 40).length"
    assert browser.value(small) == 0


@needs_browser
def test_the_theme_follows_the_system_until_the_reader_chooses(browser, url):
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(url)
    light = browser.value(paper)
    browser.open(url, dark=True)
    assert browser.value(paper) != light
    browser.value("document.getElementById('theme').click()")
    assert browser.value(paper) == light
    browser.open(url, dark=True)  # kept
    assert browser.value(paper) == light
    browser.value("localStorage.clear()")


@needs_browser
def test_without_a_script_all_is_there_and_no_dead_control(browser, url):
    browser.open(url, script=False)
    browser.send("DOM.enable")
    root = browser.send("DOM.getDocument")["root"]["nodeId"]

    def count(selector):
        return len(browser.send("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])

    assert count("table tbody tr") > 30
    assert count("input, select, th button, .code button") == 0
    assert count("button:not([hidden])") == 0


@needs_browser
def test_paper_shows_every_table_and_no_controls(browser, url):
    browser.open(url, media="print")
    browser.value("dispatchEvent(new Event('beforeprint'))")
    unseen = "[...document.querySelectorAll('table')].filter((t) => !t.offsetHeight).length"
    controls = "[...document.querySelectorAll('nav, .tools, .code button')]"
    assert browser.value(unseen) == 0
    assert browser.value(f"{controls}.filter((e) => e.offsetHeight).length") == 0
    browser.value("dispatchEvent(new Event('afterprint'))")
    assert browser.value("document.querySelectorAll('details[open]').length") == 0


@needs_browser
def test_many_runs_travel_packed_and_become_rows_when_they_are_opened(
    browser, tmp_path, monkeypatch
):
    monkeypatch.setattr(page, "LONG", 5)
    for batch in (1, 2, 4):
        add_run(tmp_path / "s", f"gn-{batch}", config("gn", batch))
    browser.open(build_report(tmp_path / "s")["index.html"].as_uri())
    assert browser.value(TABLE.format("Runs")) is None
    lock_owner = "document.querySelector('[data-packed]').closest('details')"
    browser.value(f"{lock_owner}.open = true")
    browser.value("new Promise((done) => setTimeout(done, 300))")
    assert len(shown(browser, "Runs", 0)) == 9
    press_header(browser, "Runs", 0, "Enter")
    assert browser.complaints == []


def test_a_packed_table_holds_every_text_and_a_heavy_one_is_left_to_its_file():
    columns = [Column("Run", lambda r: r["run"], False), Column("x", lambda r: str(r["x"]))]
    columns.append(Column("same", lambda r: "5"))
    rows = [{"run": f"<r{i % 7}>", "x": i} for i in range(LONG + 1)]
    table = Table("runs", "Runs", "", ["run", "x"], columns, rows)
    text = pack(table)
    assert "<" not in text
    packed = json.loads(text)
    index = range(packed["rows"])
    texts = [[c["values"][c["which"] and c["which"][i]] for c in packed["columns"]] for i in index]
    assert texts == table.texts()
    assert packed["columns"][2]["which"] == 0  # the same in every row
    assert pack(Table("runs", "", "", [], columns, [{"run": "a" * 700_000, "x": 1}])) == ""


def test_every_figure_and_table_that_exists_is_on_the_page_once(study):
    files = build_report(study)
    text = files["index.html"].read_text()
    for name in (name for name in files if name.endswith((".svg", ".csv"))):
        if name not in ("noise_check.csv",):
            assert text.count(f'href="{name}"') >= (name != "runs.csv"), name
    anchors = re.findall(r'<h[23] id="([^"]*)"', text)
    assert len(anchors) == len({*anchors}) > 10


def test_a_figure_and_a_table_of_no_section_come_under_more(study):
    analysis = study_analysis(load_study(study))
    new = Table("new", "New", "", ["x"], [Column("x", lambda row: "7")], [{"x": 7}])
    tables, figures = {**build_tables(analysis), "new": new}, {"other": (b"<svg/>", "Other.")}
    tables["exponents_of_all"] = tables["exponents"]
    parts = {"answer": [], "summary": [], "matrix": ((), ())}
    text = page.render_page(analysis, tables, figures, ("svg",), **parts)
    more = text.partition('<h2 id="more">')[2].partition("<h2")[0]
    assert 'href="other.svg"' in more
    assert 'href="new.csv"' in more
    assert '<a href="#more">More</a>' in text


def test_the_page_holds_its_figures_and_a_format_asked_for_once_is_kept_up_to_date(tmp_path):
    add_run(tmp_path / "s", "gn", config("gn", 2))
    first = build_report(tmp_path / "s", formats=("pdf",))
    name = "accuracy_vs_batch.pdf"
    before = first[name].read_bytes()
    assert "accuracy_vs_batch.svg" not in first
    assert "data:image/svg+xml," in first["index.html"].read_text()
    assert 'href="accuracy_vs_batch.svg"' not in first["index.html"].read_text()
    add_run(tmp_path / "s", "bn", config("bn", 2))
    second = build_report(tmp_path / "s", formats=("svg",))
    assert {"accuracy_vs_batch.svg", name} <= set(second)
    assert second[name].read_bytes() != before
    assert f'href="{name}"' in second["index.html"].read_text()


def test_the_order_in_which_formats_were_asked_for_changes_no_byte_and_deleted_ones_go(tmp_path):
    for study, asked in (("a/s", ("pdf", "svg")), ("b/s", ("svg",))):
        add_run(tmp_path / study, "gn", config("gn", 2))
        build_report(tmp_path / study, formats=asked)
    one = build_report(tmp_path / "a/s", formats=("svg",))
    other = build_report(tmp_path / "b/s", formats=("pdf", "svg"))
    assert set(one) == set(other)
    assert all(one[name].read_bytes() == other[name].read_bytes() for name in one)
    for name, path in one.items():
        if name.endswith(".pdf"):
            path.unlink()
    assert not any(name.endswith(".pdf") for name in build_report(tmp_path / "a/s"))


def test_what_check_found_beside_the_study_is_counted_and_makes_the_report_anew(tmp_path):
    add_run(tmp_path / "s", "gn", config("gn", 2))
    assert "measures all ten claims" in build_report(tmp_path / "s")["index.html"].read_text()
    (tmp_path / "check").mkdir()
    head = "norm,claim,key,title,statement,verdict\n"
    lines = [f"GN(8),1,core,The core,s{i},{v}" for i, v in enumerate(("holds", "holds", "fails"))]
    lines += ['BN,1,core,The core,s0,"holds only when all channels, and no other, count"']
    (tmp_path / "check" / "check.csv").write_text(head + "\n".join(lines) + "\n")
    text = build_report(tmp_path / "s")["index.html"].read_text()
    assert "2 holds, 1 fails" in text
    assert "1 holds only when" in text
