"""Names of lines beside their right ends, where they fit; a legend under the figure where not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gnexp.report.figures import style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MOST = 7  # lines beyond which names at their ends are harder to follow than a legend
SIZE_PT = 7.0
LINE_IN = 0.125  # between the middles of two names above one another
WIDEST = 0.26  # of the figure's width that names may take
ROOM_IN = 0.6  # of a figure's height that ticks, axis title and margins take


def name_lines(figure: "Figure", axis: "Axes") -> None:
    """Name the labelled lines of a figure's only axes, whose data are all drawn by now."""
    ends = _ends(axis)
    names = [name for name, _ in ends]
    height = figure.get_figheight() - ROOM_IN
    room = WIDEST * figure.get_figwidth()
    fits = ends and len(ends) <= MOST and len(ends) * LINE_IN <= height
    if not fits or max(style.text_width(name, SIZE_PT) for name in names) > room:
        style.legend_below(figure, [axis])
        return
    axis.set_ylim(axis.get_ylim())  # the places below are of these limits
    step = LINE_IN / height
    wanted = [_fraction(axis.yaxis, float(line.get_ydata()[-1])) for _, line in ends]
    for (name, line), at, y in zip(ends, wanted, spread(wanted, step, 0.0, 1.0)):
        colour = line.get_color()
        # A hair line leads from the last point to its name, for those who see no colours.
        x = _fraction(axis.xaxis, float(line.get_xdata()[-1]))
        axis.annotate(
            name,
            xy=(x, at),
            xytext=(1.04, y),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=SIZE_PT,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0.5}
            | {"shrinkB": 3.0, "relpos": (0.0, 0.5)},
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Return places at least `step` apart in [low, high], as near as can be to those wanted.

    Nearest in the sum of squares, in the order of `wanted` (ties: the first one lowest): with k the
    rank, places - k step must not decrease, an isotonic regression. Where more are wanted than fit
    they begin at `low` and leave at the top.
    """
    from scipy.optimize import isotonic_regression

    if not wanted:
        return []
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    freed = isotonic_regression([wanted[i] - k * step for k, i in enumerate(order)]).x
    top = max(low, high - (len(wanted) - 1) * step)
    places = [0.0] * len(wanted)
    for k, i in enumerate(order):
        places[i] = min(max(float(freed[k]), low), top) + k * step
    return places


def _ends(axis: "Axes") -> "list[tuple[str, Line2D]]":
    """Return (name, line) of every labelled line, or none where not all reach the right end."""
    found = [(name, _line(handle)) for handle, name in zip(*axis.get_legend_handles_labels())]
    if any(line is None or not len(line.get_xdata()) for _, line in found):
        return []
    right = max((line.get_xdata()[-1] for _, line in found), default=0.0)
    # Lines are moved sideways by a few percent; the next batch size is a factor of two away.
    return found if all(line.get_xdata()[-1] > right / 1.4 for _, line in found) else []


def _line(handle: "Artist") -> "Line2D | None":
    from matplotlib.lines import Line2D

    line = handle[0] if isinstance(handle, tuple) else handle  # error bars are a tuple
    return line if isinstance(line, Line2D) else None


def _fraction(scale: "Axis", value: float) -> float:
    """Return where a value lies between the ends of x or y, 0..1, on whatever scale."""
    low, at, high = scale.get_transform().transform([*scale.get_view_interval(), value])[[0, 2, 1]]
    return float((at - low) / (high - low))
