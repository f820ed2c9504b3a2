"""LaTeX tables compile, fit the text, and lose no number on the way."""

import re
import shutil
import subprocess

import pytest

from gnexp.analysis.tables.latex import LONG_TABLE, escape_latex
from gnexp.analysis.tables.table import Column, Table, to_latex

PDFLATEX = shutil.which("pdflatex")


def table(name, columns, rows, text="12.34 [-1.25, 10.50]", header="Accuracy lost (points)"):
    """A table with two key columns and `columns` others, each cell told apart by its number."""
    shown = [
        Column("Norm", lambda row: row["norm"], False),
        Column("Batch", lambda row: str(row["batch"])),
        *(
            Column(f"{header} {k}", lambda row, k=k: f"{text} {row['batch']}.{k}")
            for k in range(columns)
        ),
    ]
    values = [{"norm": n, "batch": b} for n in ("BN", "GN(8)") for b in range(1, rows // 2 + 1)]
    caption = "95 % of 1e-05 & more: x_1 < 2 ~ #3, A|B, {c} \\ ^2, +-1, inf."
    return Table(name, f"Table {name}", caption, [], shown, values)


def claims():
    """A table of texts too long for a line."""
    shown = [
        Column("Claim", lambda row: row["claim"], False),
        Column("Verdict", lambda row: row["verdict"], False),
    ]
    long = "the output of an example is the same when all of its batch-mates are replaced"
    rows = [{"claim": f"{k}: {long}, " * 2, "verdict": f"holds {long}"} for k in range(3)]
    return Table("claims", "Claims", "What holds.", [], shown, rows)


TABLES = {
    "narrow": table("narrow", 1, 8),
    "full": table("full", 3, 8),
    "wide": table("wide", 14, 8),
    "long": table("long", 3, 2 * LONG_TABLE),
    "claims": claims(),
    "one_row": table("one_row", 2, 2),
}


def compiled(text, folder, options):
    source = (
        rf"\documentclass[{options}]{{article}}\usepackage{{booktabs,graphicx,longtable}}"
        rf"\begin{{document}}{text} Text.\end{{document}}"
    )
    (folder / "t.tex").write_text(source.replace("% needs", "%\n% needs"))
    done = subprocess.run(
        [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
    )
    return done.returncode, (folder / "t.log").read_text(errors="replace")


@pytest.mark.skipif(PDFLATEX is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("options", ["onecolumn", "twocolumn"])
def test_the_tables_compile_and_fit_the_text(options, tmp_path):
    texts = [to_latex(table) for table in TABLES.values()]
    if options == "twocolumn":  # LaTeX's longtable exists in one column only, and the file says so
        texts = [text for text in texts if "longtable}{" not in text]
    code, log = compiled("\n".join(texts), tmp_path, options)
    assert code == 0, log[-2000:]
    over = [float(found) for found in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide", log)]
    assert not over or max(over) < 1, over


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_table_is_in_its_latex(name):
    whole = to_latex(TABLES[name])
    for texts in TABLES[name].texts():
        for text in texts:
            assert escape_latex(text).strip() in whole


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_as_many_cells_as_its_tabular_has_columns(name):
    text = to_latex(TABLES[name])
    (spec,) = re.findall(r"\\begin\{(?:tabular|longtable)\}\{((?:[lr]|p\{\d+pt\})+)\}\n", text)
    columns = len(re.sub(r"\{\d+pt\}", "", spec))
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}


def test_what_is_the_same_in_every_row_moves_into_the_caption():
    one = table("same", 1, 8)
    one.shown.append(Column("Interval over", lambda row: "t over seeds", False))
    one.shown.append(Column("Nothing", lambda row: "", False))
    text = to_latex(one)
    assert "In all rows: Interval over t over seeds." in text
    assert text.count("t over seeds") == 1
    assert "Nothing" not in text


def test_a_cell_that_begins_with_a_bracket_is_no_option_of_the_line_before():
    shown = [Column("Range", lambda row: row["r"], False)]
    text = to_latex(Table("r", "R", "C.", [], shown, [{"r": "[1, 2]"}, {"r": "[3, 4]"}]))
    assert "\n{}[1, 2]" in text


def test_a_table_without_rows_is_a_comment():
    empty = Table("e", "Empty", "C.", [], [], [], "Nothing was measured.")
    assert to_latex(empty) == "% Empty: Nothing was measured.\n"


def test_the_file_says_which_packages_it_needs():
    assert to_latex(TABLES["narrow"]).startswith("% needs \\usepackage{booktabs,graphicx}\n")
    assert to_latex(TABLES["long"]).startswith("% needs \\usepackage{booktabs,longtable}")


def pdflatex_reads(text):
    """The text without the branches that pdfLaTeX skips."""
    return re.sub(r"\\ifdefined\\Umathcode .*?\\else (.*?)\\fi\{\}", r"\1", text)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("\u010da\u0161a", "casa"),
        ("\u732b", "U+732B"),
        ("\U0001f431", "U+1F431"),
        ("\u216b", "XII"),
    ],
)
def test_pdflatex_gets_names_beyond_latin_1_in_ascii_and_other_engines_as_they_are(name, plain):
    escaped = escape_latex(f"{name}: -1.5")
    assert pdflatex_reads(escaped) == f"{plain}: $-1.5$"
    assert re.sub(r"\\else .*?\\fi\{\}|\\ifdefined\\Umathcode ", "", escaped) == f"{name}: $-1.5$"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("caf\u00e9 \u00fc_1", "caf\u00e9 \u00fc\\_1"),  # latin 1, as before
        ("caf\udce9", "cafU+DCE9"),  # a byte that is no text
        ("bn-b1-resnet8-76908e18", "bn-b1-resnet8-76908e18"),  # no power of ten
        ("1e-05 to 2.5e7", r"$1\times 10^{-5}$ to $2.5\times 10^{7}$"),
    ],
)
def test_names_and_numbers_are_escaped_for_latex(text, escaped):
    assert escape_latex(text) == escaped
