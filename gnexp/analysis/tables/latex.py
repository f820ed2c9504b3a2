"""A table as LaTeX with booktabs, scaled down where it is wider than the text."""

import re
import textwrap
import unicodedata
from collections.abc import Sequence

LONG_TABLE = 40  # rows beyond which LaTeX must be able to break the page
TEXT_LETTERS = 25  # of a text; longer ones are set in lines of PARAGRAPH
PARAGRAPH = "p{110pt}"
HEADER_LETTERS = 11  # headers are broken at spaces, to this or the width of the cells
COLUMN_LETTERS = 45  # of a table that fits one column of two
Columns = Sequence[tuple[str, Sequence[str], bool]]


def latex_table(
    name: str,
    caption: str,
    heads: Sequence[str],
    texts: Sequence[Sequence[str]],
    numeric: Sequence[bool],
) -> str:
    """Return rows of text as a `table`, as `table*` where they need both columns of a page.

    A table of more than LONG_TABLE rows is a longtable, which is not scaled. What is the same in
    every row goes into the caption.
    """
    columns = list(zip(heads, zip(*texts), numeric))
    same = [column for column in columns if len(texts) > 1 and len(set(column[1])) == 1]
    shown = [column for column in columns if column not in same] or columns[:1]
    common = "; ".join(f"{head} {cells[0]}" for head, cells, _ in same if cells[0])
    caption += f" In all rows: {common}." if common else ""
    spec = "".join(_kind(*column) for column in shown)
    caption = rf"\caption{{{escape_latex(caption)}}}\label{{tab:{name}}}"
    head, body = _head(shown), _body(shown)
    if len(texts) > LONG_TABLE:
        lines = [
            *("% needs \\usepackage{booktabs,longtable}, in a page of one column", "{"),
            *(r"\scriptsize", r"\setlength{\tabcolsep}{2pt}", rf"\begin{{longtable}}{{{spec}}}"),
            *(caption + r"\\", *head, r"\endfirsthead", *head, r"\endhead"),
            *(r"\bottomrule", r"\endfoot", *body, r"\end{longtable}", "}"),
        ]
        return "\n".join(lines) + "\n"
    letters = sum(max(map(len, cells)) for _, cells, _ in shown)
    kind = "table*" if letters > COLUMN_LETTERS else "table"
    lines = [
        *("% needs \\usepackage{booktabs,graphicx}", rf"\begin{{{kind}}}", r"\centering", caption),
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
        rf"\begin{{tabular}}{{{spec}}}",
        *(*head, *body, r"\bottomrule", r"\end{tabular}}"),
        rf"\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def _kind(head: str, cells: Sequence[str], right: bool) -> str:
    if right:
        return "r"
    return PARAGRAPH if max(map(len, cells)) > TEXT_LETTERS else "l"


def _head(columns: Columns) -> list[str]:
    heads = []
    for head, cells, right in columns:
        lines = textwrap.wrap(head, max(HEADER_LETTERS, *map(len, cells)), break_long_words=False)
        broken = r" \\ ".join(map(escape_latex, lines))
        side = "r" if right else "l"
        several = rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{broken}\end{{tabular}}"
        heads.append(several if len(lines) > 1 else broken)
    return [r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]


def _body(columns: Columns) -> list[str]:
    rows = zip(*([_cell(text, _kind(*c)) for text in c[1]] for c in columns))
    return [" & ".join(row) + r" \\" for row in rows]


def _cell(text: str, kind: str) -> str:
    escaped = escape_latex(text)
    if kind == PARAGRAPH:
        return rf"{{\raggedright {escaped}\par}}"
    return "{}" + escaped if escaped[:1] in ("[", "*") else escaped  # not an option of \\


_LATEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"$<$", ">": r"$>$", "|": r"$|$"},
}
_NUMBER = re.compile(r"(?<![\w.])(?<![\w.]-)(-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf))(?![\w.])")


def _letter(character: str) -> str:
    """Return a character for every LaTeX: pdfLaTeX gets what lies beyond Latin-1 in ASCII."""
    if ord(character) <= 0xFF:
        return _LATEX.get(character, character)
    parts = unicodedata.normalize("NFKD", character)
    plain = "".join(_LATEX.get(part, part) for part in parts if part.isascii())
    plain = plain.strip() or f"U+{ord(character):04X}"
    if unicodedata.category(character) == "Cs":  # no text at all
        return plain
    return rf"\ifdefined\Umathcode {character}\else {plain}\fi{{}}"  # XeTeX and LuaTeX have it


def _mathematics(value: str) -> str:
    """Return a number with its minus, power of ten and infinity as mathematics."""
    if "e" not in value and value[0] != "-" and "inf" not in value:
        return value
    mantissa, _, power = value.replace("inf", r"\infty").partition("e")
    return f"${mantissa}" + (rf"\times 10^{{{int(power)}}}$" if power else "$")


def escape_latex(text: str) -> str:
    """Escape text; a minus before a number, a power of ten and infinity become mathematics."""
    pieces = _NUMBER.split(text.replace("\n", " "))  # texts and, between them, numbers
    pieces[::2] = ["".join(map(_letter, piece)) for piece in pieces[::2]]
    pieces[1::2] = map(_mathematics, pieces[1::2])
    return "".join(pieces).replace("+-", r"$\pm$")
