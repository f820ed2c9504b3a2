"""A table as LaTeX that fits the text: booktabs, smaller type, and columns in parts if need be.

Widths are estimated from the letters, in points (1/72.27 inch) of Computer Modern; a reserve makes
up for what the estimate misses. Nothing is scaled and no type is smaller than seven points.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

COLUMN_PT, TEXT_PT = 229.0, 345.0  # of article, two columns and one; two have 469 across
SIZES = ((r"\normalsize", 1.0, 6.0), (r"\small", 0.9, 4.0), (r"\footnotesize", 0.8, 3.0))
SIZES += ((r"\scriptsize", 0.72, 2.2),)
LONG_TABLE = 40  # rows beyond which LaTeX must be able to break the page
RESERVE = 1.12
TEXT_COLUMN_PT = 110.0  # of normal size: longer texts are set in lines
HEADER_PT = 52.0


@dataclass(frozen=True)
class _Column:
    head: str
    cells: list[str]
    numeric: bool

    @cached_property
    def paragraph(self) -> bool:
        return max(map(_width, self.cells)) > TEXT_COLUMN_PT and not self.numeric

    @cached_property
    def lines(self) -> list[str]:
        """The header, broken at spaces to about the width of the column's cells."""
        room = max(HEADER_PT, *(_width(cell) for cell in self.cells))
        lines = [""]
        for word in self.head.split(" "):
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and _width(longer) > min(room, 2 * HEADER_PT):
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    @cached_property
    def width(self) -> float:
        """In points of normal size, without the space between columns."""
        body = TEXT_COLUMN_PT if self.paragraph else max(map(_width, self.cells))
        return max(body, *map(_width, self.lines))


def latex_table(
    name: str,
    title: str,
    caption: str,
    heads: Sequence[str],
    texts: Sequence[Sequence[str]],
    numeric: Sequence[bool],
) -> str:
    """Return rows of text as LaTeX with booktabs (and longtable beyond LONG_TABLE rows).

    At most COLUMN_PT wide, as `table`, or TEXT_PT, as `table*`, which spans both columns. What is
    the same in every row goes into the caption. Columns that do not fit follow in further parts,
    each with the columns that tell the rows apart.
    """
    columns = [
        _Column(h, [row[i] for row in texts], n) for i, (h, n) in enumerate(zip(heads, numeric))
    ]
    keys = _keys(columns)
    same = [c for c in columns if c not in keys and len(texts) > 1 and len(set(c.cells)) == 1]
    common = "; ".join(f"{c.head} {c.cells[0]}" for c in same if c.cells[0])
    caption += f" In all rows: {common}." if common else ""
    shown = [column for column in columns if column not in same]
    size, parts, wide = _layout(shown, keys)
    label = rf"\label{{tab:{name}}}"
    captions = [_caption(caption, label)]
    captions += [_caption(f"{title}, part {k} of {len(parts)}.") for k in range(2, len(parts) + 1)]
    if len(texts) > LONG_TABLE:
        first = "% needs \\usepackage{booktabs,longtable}, in a page of one column"
        bodies = [_long(part, size, text) for part, text in zip(parts, captions)]
    elif len(texts) * len(parts) > LONG_TABLE:
        first = "% needs \\usepackage{booktabs}"
        bodies = [_float([part], size, text, wide) for part, text in zip(parts, captions)]
    else:
        first = "% needs \\usepackage{booktabs}"
        bodies = [_float(parts, size, captions[0], wide)]
    return "\n".join([first, *(line for body in bodies for line in body)]) + "\n"


def _keys(columns: Sequence[_Column]) -> list[_Column]:
    """Return few leading columns that tell all rows apart, or the first where none do."""

    def apart(some: Sequence[_Column]) -> bool:
        rows = list(zip(*(column.cells for column in some)))
        return bool(rows) and len(set(rows)) == len(rows)

    end = next((k for k in range(1, len(columns)) if apart(columns[:k])), None)
    if end is None:
        return list(columns[:1])
    keys = list(columns[:end])
    for column in reversed(keys):
        rest = [other for other in keys if other is not column]
        keys = rest if apart(rest) else keys
    return keys


def _layout(
    columns: Sequence[_Column], keys: Sequence[_Column]
) -> tuple[tuple[str, float, float], list[list[_Column]], bool]:
    """Return (type size, columns of each part, whether wider than a column)."""
    for room in (COLUMN_PT, TEXT_PT):
        for size in SIZES[: 3 if room == COLUMN_PT else None]:
            if _total(columns, size) <= room:
                return size, [list(columns)], room == TEXT_PT
    size, parts = SIZES[-1], [[]]
    for column in columns:
        if parts[-1] and _total([*parts[-1], column], size) > TEXT_PT:
            parts.append(list(keys))
        if column not in parts[-1]:
            parts[-1].append(column)
    return size, parts, True


def _total(columns: Sequence[_Column], size: tuple[str, float, float]) -> float:
    _, scale, gap = size
    return RESERVE * sum(scale * c.width for c in columns) + 2 * gap * len(columns)


def _float(
    parts: Sequence[Sequence[_Column]], size: tuple[str, float, float], caption: str, wide: bool
) -> list[str]:
    kind = "table*" if wide else "table"
    lines = [rf"\begin{{{kind}}}", r"\centering", caption, *_type(size)]
    for k, part in enumerate(parts):
        lines += [r"\par\medskip"] * bool(k)
        lines += [rf"\begin{{tabular}}{{{_spec(part, size)}}}", *_rule(part), *_body(part)]
        lines += [r"\bottomrule", r"\end{tabular}"]
    return [*lines, rf"\end{{{kind}}}"]


def _long(part: Sequence[_Column], size: tuple[str, float, float], caption: str) -> list[str]:
    return [
        *("{", *_type(size), rf"\begin{{longtable}}{{{_spec(part, size)}}}"),
        *(caption + r"\\", *_rule(part), r"\endfirsthead"),
        *(*_rule(part), r"\endhead", r"\bottomrule", r"\endfoot"),
        *(*_body(part), r"\end{longtable}", "}"),
    ]


def _type(size: tuple[str, float, float]) -> list[str]:
    return [size[0], rf"\setlength{{\tabcolsep}}{{{size[2]:g}pt}}"]


def _spec(part: Sequence[_Column], size: tuple[str, float, float]) -> str:
    """Return the column types; texts in lines have the width that the layout counted on."""
    inches = f"p{{{size[1] * TEXT_COLUMN_PT:.0f}pt}}"
    return "".join(inches if c.paragraph else "r" if c.numeric else "l" for c in part)


def _rule(part: Sequence[_Column]) -> list[str]:
    heads = []
    for column in part:
        side = "r" if column.numeric else "l"
        lines = r" \\ ".join(escape_latex(line) for line in column.lines)
        several = rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{lines}\end{{tabular}}"
        heads.append(several if len(column.lines) > 1 else lines)
    return [r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]


def _body(part: Sequence[_Column]) -> list[str]:
    rows = zip(*(column.cells for column in part))
    return [" & ".join(_cell(text, c) for text, c in zip(row, part)) + r" \\" for row in rows]


def _cell(text: str, column: _Column) -> str:
    escaped = escape_latex(text)
    if column.paragraph:
        return rf"{{\raggedright {escaped}\par}}"
    return "{}" + escaped if escaped[:1] in ("[", "*") else escaped  # not an option of \\


def _caption(text: str, label: str = "") -> str:
    return rf"\caption{{{escape_latex(text)}}}{label}"


_NARROW, _BROAD = frozenset(".,:;'|!ijl[]()I tf"), frozenset("mwMW%@")


def _width(text: str) -> float:
    """Return the estimated width of a line of plain text in points, at ten points."""
    width = 0.0
    for character in text:
        if character in _NARROW:
            width += 3.4
        elif character in _BROAD:
            width += 8.3
        else:
            width += 7.2 if character.isupper() or character in "+-<>=^~" else 5.1
    return width


_LATEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"$<$", ">": r"$>$", "|": r"$|$"},
}
_NUMBER = re.compile(r"(?<![\w.])(?<![\w.]-)-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf)(?![\w.])")


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


def escape_latex(text: str) -> str:
    """Escape text; a minus before a number, a power of ten and infinity become mathematics."""

    def number(match: re.Match[str]) -> str:
        value = match.group()
        if "e" not in value and value[0] != "-" and "inf" not in value:
            return value
        mantissa, _, power = value.replace("inf", r"\infty").partition("e")
        return f"${mantissa}" + (rf"\times 10^{{{int(power)}}}$" if power else "$")

    pieces, end = [], 0
    for match in _NUMBER.finditer(text.replace("\n", " ")):
        pieces.append("".join(map(_letter, text[end : match.start()])))
        pieces.append(number(match))
        end = match.end()
    pieces.append("".join(map(_letter, text[end:])))
    return "".join(pieces).replace("+-", r"$\pm$")
