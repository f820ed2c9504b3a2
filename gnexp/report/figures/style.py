"""The style of every figure: colours, markers, sizes, and reproducible files.

One colour and one marker per norm, whatever else a figure shows (the Okabe-Ito palette, which
colour-blind readers can tell apart; markers for those who print in grey).
"""

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import Series
from gnexp.analysis.eval_split import TEST, for_split
from gnexp.store.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Maker = Callable[[], "Figure | None"]
Style = dict[str, Any]

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
SEQUENCE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
COLUMN_IN, PAGE_IN = 3.5, 7.0  # widths of one printed column and of the page, inches
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


def save(figure: "Figure", stem: Path) -> Path:
    """Write STEM.png and STEM.svg; return the latter."""
    for kind in ("png", "svg"):
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
            for label in (axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
                label.set_text(for_split(label.get_text(), on))
            made = {kind: image_bytes(figure, kind) for kind in dict.fromkeys(("svg", *formats))}
            drawn[name] = made["svg"], captions[name]
            for kind in dict.fromkeys(formats):
                written.append(folder / f"{name}.{kind}")
                write_whole(written[-1], made[kind])
    for name, kind in itertools.product(captions, FORMATS):
        if folder / f"{name}.{kind}" not in written:  # it would contradict this report
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return drawn, written


def captions_of(name: str) -> dict[str, str]:
    """Return {figure: its caption} of a file of this folder: names, and indented texts."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    parts = (part.partition("\n") for part in text.split("\n\n"))
    return {figure: " ".join(caption.split()) for figure, _, caption in parts}


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


def norm_styles(norms: Mapping[str, str], step: int = 1) -> dict[str, Style]:
    """Return {line: its style and label} of lines {line: its norm}.

    Lines of one norm have its colour and marker; they differ in line, in filling and, from the
    third on, in lightness. step 2: in lightness alone.
    """
    from matplotlib.colors import to_hex, to_rgb

    styles, names = {}, list(norms)
    for index, (name, norm) in enumerate(norms.items()):
        turn = step * sum(norms[other] == norm for other in names[:index])
        colour, marker = style_of(norm, list(norms.values()))
        lighter = min(0.2 * (turn // 2), 0.6)
        colour = to_hex([c + (1 - c) * lighter for c in to_rgb(colour)])
        filling, line = colour if turn % 2 == 0 else "white", LINES[turn % len(LINES)]
        look = {"color": colour, "marker": marker, "markerfacecolor": filling, "linestyle": line}
        styles[name] = {**look, "label": name}
    return styles


def series_styles(lines: Sequence[Series]) -> dict[str, Style]:
    """Return the style of each series, by its label."""
    return norm_styles({line.label: line.norm for line in lines})


def sequence_styles(names: Sequence[str]) -> dict[str, Style]:
    """Return the style of each line where lines are not norms."""
    styles = {}
    for index, name in enumerate(names):
        turn, own = divmod(index, len(SEQUENCE))
        look = {"color": SEQUENCE[own], "marker": "so^vDP*"[own]}
        styles[name] = {**look, "linestyle": LINES[turn % len(LINES)], "label": name}
    return styles
