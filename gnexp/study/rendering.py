"""Tables in four forms: raw numbers as CSV, and for people as Markdown, LaTeX and text cells."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.study.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Cut = Callable[[Row], str]

LONG_TABLE = 40  # rows beyond which LaTeX must be able to break the page


@dataclass(frozen=True)
class Column:
    """A column for people: its header (with unit) and how a row's text is made."""

    header: str
    text: Cut
    numeric: bool = True


@dataclass
class Table:
    """Rows with every raw column, the columns shown to people, and what they mean.

    empty: why there is no row, in a sentence.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[str]
    shown: Sequence[Column]
    rows: list[Row] = field(default_factory=list)
    empty: str = "Nothing was measured for this table."

    @property
    def frame(self) -> "pd.DataFrame":
        """The raw rows as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.columns))

    def texts(self) -> list[list[str]]:
        """Return the shown cells as text, row by row."""
        return [[column.text(row) for column in self.shown] for row in self.rows]


def write_table_files(table: Table, folder: Path) -> list[Path]:
    """Write NAME.csv, NAME.md and NAME.tex and return their paths."""
    written = []
    for suffix, render in (("csv", to_csv), ("md", to_markdown), ("tex", to_latex)):
        written.append(folder / f"{table.name}.{suffix}")
        write_whole(written[-1], render(table))
    return written


def to_csv(table: Table) -> str:
    """Return all columns, accuracies 0..1, floats exact; what is unknown is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([_raw(row.get(column)) for column in table.columns])
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """Return the shown columns as a Markdown table under the title, with the caption."""
    lines = [f"## {table.title}", "", table.caption if table.rows else table.empty, ""]
    if table.rows:
        lines.append("| " + " | ".join(c.header for c in table.shown) + " |")
        lines.append("| " + " | ".join("---:" if c.numeric else "---" for c in table.shown) + " |")
        for texts in table.texts():
            lines.append("| " + " | ".join(_escape_markdown(text) for text in texts) + " |")
    return "\n".join(lines).rstrip() + "\n"


def to_latex(table: Table) -> str:
    """Return the shown columns as a booktabs table (a longtable when it is long)."""
    if not table.rows:
        return f"% {table.title}: {table.empty}\n"
    spec = "".join("r" if c.numeric else "l" for c in table.shown)
    head = " & ".join(_escape_latex(c.header) for c in table.shown) + r" \\"
    body = [" & ".join(_escape_latex(text) for text in texts) + r" \\" for texts in table.texts()]
    caption = rf"\caption{{{_escape_latex(table.caption)}}}\label{{tab:{table.name}}}"
    rule = [r"\toprule", head, r"\midrule"]
    if len(body) > LONG_TABLE:
        lines = [
            "% needs \\usepackage{booktabs,longtable}",
            rf"\begin{{longtable}}{{{spec}}}",
            *(caption + r"\\", *rule, r"\endhead", r"\bottomrule", r"\endfoot"),
            *(*body, r"\end{longtable}"),
        ]
    else:
        lines = [
            *("% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", caption),
            *(rf"\begin{{tabular}}{{{spec}}}", *rule, *body),
            *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
        ]
    return "\n".join(lines) + "\n"


def plain(value: Any, digits: int = 3) -> str:
    """Return a number with `digits` significant digits; '' for what is unknown, 'inf' as such."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as percent without the sign; '' for what is unknown."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{100 * value:.{digits}f}"


def _raw(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else value


def _escape_markdown(text: str) -> str:
    return re.sub(r"([|*_<>`\\])", r"\\\1", text.replace("\n", " "))


_LATEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"$<$", ">": r"$>$", "|": r"$|$"},
}
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf)(?![\w.])")


def _escape_latex(text: str) -> str:
    """Escape text; a standing minus, a power of ten and infinity become mathematics."""

    def number(match: re.Match[str]) -> str:
        value = match.group()
        if "e" not in value and value[0] != "-" and "inf" not in value:
            return value
        mantissa, _, power = value.replace("inf", r"\infty").partition("e")
        return f"${mantissa}" + (rf"\times 10^{{{int(power)}}}$" if power else "$")

    pieces, end = [], 0
    for match in _NUMBER.finditer(text.replace("\n", " ")):
        pieces.append("".join(_LATEX.get(c, c) for c in text[end : match.start()]))
        pieces.append(number(match))
        end = match.end()
    pieces.append("".join(_LATEX.get(c, c) for c in text[end:]))
    return "".join(pieces).replace("+-", r"$\pm$")
