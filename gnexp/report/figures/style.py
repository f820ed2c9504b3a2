"""The style of every figure: colours, markers, axes, legend, and reproducible files.

One colour and one marker per norm, whatever else a figure shows (the Okabe-Ito palette, which
colour-blind readers can tell apart; markers for those who print in grey).
"""

import contextlib
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import Series
from gnexp.analysis.eval_split import TEST, for_split
from gnexp.store.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Maker = Callable[[], "Figure | None"]

# Norms that pool alike have related hues; every norm has a pair of its own.
STYLES = {
    "bn": ("#D55E00", "o"),
    "gn": ("#0072B2", "s"),
    "ln": ("#009E73", "^"),
    "in": ("#CC79A7", "v"),
    "ln2d": ("#66C2A4", "<"),
    "rms": ("#00441B", ">"),
    "dyt": ("#000000", "h"),
    "frn": ("#7B3294", "d"),
    "evonorm_b0": ("#B2182B", "*"),
    "evonorm_s0": ("#053061", "*"),
    "brn": ("#E69F00", "p"),
    "gbn": ("#8C510A", "H"),
    "syncbn": ("#F4A582", "8"),
    "switchable": ("#C51B7D", "P"),
    "online": ("#DDAA33", "D"),
    "bn_frozen": ("#7F3B08", "X"),
    "gn_ws": ("#56B4E9", "D"),
    "none": ("#555555", "X"),
    "none_fixup": ("#999999", "h"),
}
OTHER_STYLES = (("#E69F00", "D"), ("#56B4E9", "P"), ("#000000", "*"), ("#8B6F00", "p"))
LINES = ("-", "--", ":", "-.")
COLUMN_IN, PAGE_IN = 3.5, 7.0  # widths of one printed column and of the page, inches
LEGEND_LINE_IN = 0.17
PAGE_HEIGHT_IN = 9.0  # of what a printed page holds beside a caption
DPI = 300
FORMATS = ("png", "svg", "pdf")

_SETTINGS = {
    **{"font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7},
    # Markers narrower than the caps of the bars: a short interval stays visible.
    **{"lines.linewidth": 1.2, "lines.markersize": 3.8, "errorbar.capsize": 2.4},
    **{"legend.frameon": False, "legend.handlelength": 1.8, "legend.columnspacing": 1.2},
    **{"grid.color": "#DDDDDD", "grid.linewidth": 0.5, "axes.axisbelow": True},
    **{"svg.hashsalt": "gnexp", "svg.fonttype": "path", "figure.facecolor": "white"},
    "pdf.fonttype": 42,  # TrueType: text stays text, and journals refuse Type 3
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Use the report's settings within the block, whatever the user's own are."""
    # Figures are made without pyplot: no global state, no window system, nothing to close.
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def axes_grid(
    rows: int, columns: int, width: float, height: float, **sharing: Any
) -> "tuple[Figure, list[Axes]]":
    """Return a figure (inches) and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **sharing).flat)


def save(figure: "Figure", stem: Path, formats: Sequence[str] = ("png", "svg")) -> Path:
    """Write STEM.FORMAT for each of FORMATS that is asked for; return STEM.svg, written or not."""
    for kind in formats:
        write_whole(stem.with_suffix(f".{kind}"), image_bytes(figure, kind))
    return stem.with_suffix(".svg")


def write_figures(
    makers: "Mapping[str, Maker]",
    captions: Mapping[str, str],
    folder: Path,
    formats: Sequence[str],
    on: str = TEST,
) -> tuple[dict[str, tuple[bytes, str]], list[Path]]:
    """Draw what has something to show; return {name: (its SVG, its caption)}, and the files.

    A file NAME.FORMAT each; other files under these names, of an earlier report, are removed. on:
    of which images accuracies are; axis labels say so. Raises ValueError for an unknown format.
    """
    drawn, written = {}, []
    with drawing():
        for name, make in makers.items():
            if (figure := make()) is None:
                continue
            word_figure(figure, on)
            made = {kind: image_bytes(figure, kind) for kind in dict.fromkeys(("svg", *formats))}
            drawn[name] = made["svg"], captions[name]
            for kind in dict.fromkeys(formats):
                written.append(folder / f"{name}.{kind}")
                write_whole(written[-1], made[kind])
    for name, kind in itertools.product(captions, FORMATS):
        if folder / f"{name}.{kind}" not in written:  # it would contradict this report
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return drawn, written


def image_bytes(figure: "Figure", kind: str) -> bytes:
    """Return the figure as a file of one of FORMATS without dates or versions in it.

    The picture has the size of the figure exactly. Raises ValueError for another format.
    """
    if kind not in FORMATS:
        raise ValueError(f"figure format {kind!r} is none of {', '.join(FORMATS)}")
    _take_literally(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once is enough for all files
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=dict(_UNDATED[kind]))
    return buffer.getvalue()


def _take_literally(figure: "Figure") -> None:
    """Let no name with dollar signs, as of a class folder, be read as a formula; ticks are."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "$" in text.get_text() and r"\mathdefault" not in text.get_text():
            text.set_parse_math(False)


_UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def style_of(norm: str, norms: Sequence[str]) -> tuple[str, str]:
    """Return (colour, marker); user norms get the remaining ones in order of their names."""
    if norm in STYLES:
        return STYLES[norm]
    own = sorted({n for n in norms if n not in STYLES})
    return OTHER_STYLES[own.index(norm) % len(OTHER_STYLES)]


def variant_style(norm: str, norms: Sequence[str], turn: int) -> dict[str, Any]:
    """Return the style of a norm's variant number `turn`: its colour, another line and marker.

    Variants differ in line, in filling and, from the third on, in lightness.
    """
    from matplotlib.colors import to_hex, to_rgb

    colour, marker = style_of(norm, norms)
    lighter = min(0.2 * (turn // 2), 0.6)
    colour = to_hex([c + (1 - c) * lighter for c in to_rgb(colour)])
    filling = colour if turn % 2 == 0 else "white"
    line = LINES[turn % len(LINES)]
    return {"color": colour, "marker": marker, "linestyle": line, "markerfacecolor": filling}


def line_style(line: Series, lines: Sequence[Series]) -> dict[str, Any]:
    """Return the style and label of one series among all of a figure."""
    turn = [id(other) for other in lines if other.norm == line.norm].index(id(line))
    norms = [other.norm for other in lines]
    return {**variant_style(line.norm, norms, turn), "label": line.label}


def sequence_style(index: int) -> dict[str, Any]:
    """Return the style of line number `index` where lines are not norms."""
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    turn = index // len(colours) % len(LINES)
    index %= len(colours)
    return {"color": colours[index], "marker": "so^vDP*"[index], "linestyle": LINES[turn]}


def wrapped(label: str, width: float, size: float = 8) -> str:
    """Break a series' label into lines of at most `width` inches, only at commas, = and _."""
    pieces = re.split(r"(?<=, )|(?<=[=_])", label)
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if text_width((lines[-1] + piece).rstrip(), size) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    return "\n".join(line.rstrip(" ,") for line in lines)


def text_width(text: str, size: float) -> float:
    """Return the width in inches of a line of text of `size` points."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text else 0.0


def dodge(values: Sequence[float], index: int, count: int) -> list[float]:
    """Shift a line sideways by a few percent, so that its intervals do not hide the others'."""
    step = min(0.07, 0.45 / max(count, 1))
    return [value * 2 ** (step * (index - (count - 1) / 2)) for value in values]


def error_bars(rows: Sequence[Mapping[str, Any]], column: str) -> list[list[float]] | None:
    """Return the lengths of error bars in percent of a column of fractions with _lo and _hi.

    0 where a row has no interval; None where no row has any.
    """

    def length(row: Mapping[str, Any], end: str, sign: int) -> float:
        value = row.get(f"{column}_{end}", math.nan)
        return max(100 * sign * (value - row[column]), 0.0) if math.isfinite(value) else 0.0

    lengths = [[length(row, end, sign) for row in rows] for end, sign in (("lo", -1), ("hi", 1))]
    return lengths if any(map(any, lengths)) else None


def size_axis(axis: "Axes", values: Sequence[int], title: str = "Batch size") -> None:
    """Make x a log2 axis whose ticks are the values themselves: 1, 2, 4, ..."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = sorted(set(values))
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlim(ticks[0] / 1.35, ticks[-1] * 1.35)
    axis.set_xlabel(title)
    axis.grid(True)


def percent_axis(axis: "Axes") -> None:
    """Keep y within 0 and 100: intervals of two or three seeds may reach beyond by far."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 0.0), min(high, 101.0))


def legend_below(figure: "Figure", axes: "Sequence[Axes]") -> None:
    """Put one legend for all axes under them, and make the figure taller by as much."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    # Measured lines have error bars and come first; keys of line and filling follow.
    handles = dict(sorted(handles.items(), key=lambda item: not isinstance(item[1], tuple)))
    if not handles:
        return
    columns = _legend_columns(list(handles), figure.get_figwidth())
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE_IN * rows)
    place = {"loc": "outside lower center", "ncols": columns}
    figure.legend(handles.values(), handles.keys(), **place)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Return the most columns whose longest entries fit beside one another, made even."""
    size = float(_SETTINGS["legend.fontsize"])
    # Beside its text an entry has a handle, its distance and that of the columns, in font sizes.
    widths = [text_width(label, size) + 4.0 * size / 72 for label in labels]
    for columns in range(len(labels), 1, -1):
        full, longer = divmod(len(labels), columns)  # the first columns hold one entry more
        ends = [c * full + min(c, longer) for c in range(columns + 1)]
        if sum(max(widths[a:b]) for a, b in itertools.pairwise(ends)) <= width - 0.05:
            rows = -(-len(labels) // columns)
            return -(-len(labels) // rows)
    return 1


def word_figure(figure: "Figure", on: str) -> None:
    """Word the axis labels of a figure that is not laid out yet."""
    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_text(for_split(label.get_text(), on))
