"""The family of columns: how a row's numbers are written, by the kinds that tables.toml names."""

from collections.abc import Callable, Mapping, Sequence

from gnexp.analysis.article_claims import number_text
from gnexp.analysis.batch_vs_update_batch import PRECISE
from gnexp.analysis.cells import NORM_LABELS
from gnexp.analysis.inference import MOST_SEEDS
from gnexp.analysis.lr_search import octaves
from gnexp.analysis.tables.table import (
    Column,
    Row,
    bounds,
    estimate,
    fixed,
    format_number,
    percent,
    points,
    signed,
)

_LEFT = ("words", "said")  # the kinds of texts, aligned left
_UNITS = {"number": format_number, "points": points, "percent": percent, "fixed": fixed}
_UNITS |= {"signed": signed, "two_digits": lambda value: format_number(value, 2)}


def column(line: str) -> Column:
    """Return the column of a line 'header | kind column ...':

    number COLUMN UNIT, words COLUMN; interval LO HI UNIT: '[lo, hi]'; estimate COLUMN UNIT N: 'mean
    [lo, hi]', with its seeds where N is not the row's n; made NAME ..., said NAME ...: as a
    function of this file has it. Units: "number" or what is named.
    """
    header, _, spec = line.rpartition(" | ")
    kind, *args = spec.split()
    return Column(header, _KINDS[kind](*args), kind not in _LEFT)


def key_columns(key: Sequence[str], headers: Mapping[str, str]) -> list[Column]:
    """Return the columns for people of the keys that identify a cell."""
    norm = Column("Norm", lambda row: NORM_LABELS.get(row["norm"], str(row["norm"])), False)
    texts = ("model", "data", "run")  # of which the columns are aligned left
    return [
        norm if k == "norm" else Column(headers.get(k, k), _number(k), k not in texts) for k in key
    ]


Writer = Callable[[Row], str]


def _number(name: str, unit: str = "number") -> Writer:
    return lambda row: _UNITS[unit](row.get(name))


def _interval(lo: str, hi: str, unit: str = "points") -> Writer:
    return lambda row: bounds(row.get(lo), row.get(hi), _UNITS[unit])


def _estimate(name: str, unit: str = "points", n: str = "n") -> Writer:
    return lambda row: estimate(row, name, _UNITS[unit], n)


def _made(name: str, *args: str) -> Writer:
    return lambda row: _MADE[name](row, *args)


_KINDS = {"number": _number, "words": _number, "interval": _interval, "estimate": _estimate}
_KINDS |= {"made": _made, "said": _made}


def sources(row: Row) -> str:
    """Return '0.34 (moderated), 0.67 (bound)', in points: both sources, where they are known."""
    both = (("se_seeds", "method"), ("se_images", "images"))
    return ", ".join(f"{points(row[se])} ({row[how]})" for se, how in both if row[how])


def _of_all(row: Row) -> str:
    total = row["n"] + row["n_diverged"]
    return f"{row['n_diverged']} of {total} diverged" if row["n_diverged"] else ""


def _seeds(row: Row) -> str:
    lost = row["n_diverged"] + row["n_diverged_against"]
    return f"{row['n_a']} and {row['n_b']}" + (f", {lost} diverged" if lost else "")


def _counted(row: Row, name: str, n: str) -> str:
    """Return a mean with its interval, and always how many seeds it is of."""
    mean = estimate(row, name)
    return f"{mean} (n = {row[n]})" if mean else ""


def _needed(row: Row) -> str:
    seeds = (row[f"seeds_needed{end}"] for end in ("", "_lo", "_hi"))
    most = f"more than {MOST_SEEDS}"
    value, lo, hi = (most if n > MOST_SEEDS else format_number(n) for n in seeds)
    return f"{value} [{lo}, {hi}]" if lo else value


def _budget(row: Row, of: str) -> str:
    epochs, images = row[f"{of}_epochs"], row[f"{of}_images"]
    return f"{epochs} x {images:,}" if epochs else ""


def _good_rates(row: Row) -> str:
    lo = "<= " if row["good_open"] in ("lo", "both") else ""
    hi = ">= " if row["good_open"] in ("hi", "both") else ""
    return f"{lo}{format_number(row['good_lo'], 2)} to {hi}{format_number(row['good_hi'], 2)}"


def _gained(row: Row) -> str:
    same = row["gap"] == 0.0 and not row["n_gap"]
    return "same rate" if same else estimate(row, "gap", percent)


def _measured(row: Row) -> str:
    if row["measured"]:
        return row["measured"]
    return f"{number_text(row['unit'], row['value'], row['lo'], row['hi'])} {row['unit']}".strip()


def _accuracy(row: Row, side: str) -> str:
    n, diverged = row[f"{side}_n"], row[f"{side}_n_diverged"]
    lost = _of_all({"n": n, "n_diverged": diverged})
    more = ", ".join(filter(None, [f"n = {n}", lost]))
    interval = bounds(row[f"{side}_lo"], row[f"{side}_hi"])
    return f"{points(row[f'{side}_mean'])} {interval} ({more})" if n else lost


def _cost(row: Row, side: str) -> str:
    interval = bounds(row[f"{side}_lo"], row[f"{side}_hi"])
    numbers = (signed(row[f"{side}_cost"]), interval, f"(n = {row[f'{side}_n']})")
    return " ".join(filter(None, numbers))


_MADE: dict[str, Callable[..., str]] = {
    "sources": sources,
    "seeds": _seeds,
    "counted": _counted,
    "needed": _needed,
    "budget": _budget,
    "good_rates": _good_rates,
    "gained": _gained,
    "measured": _measured,
    "accuracy": _accuracy,
    "cost": _cost,
    "diverged": lambda row: _of_all(row) or "none",
    "counted_seeds": lambda row: ", ".join(filter(None, (str(row["n"]), _of_all(row)))),
    "at_chance": lambda row: (
        str(row["n"]) + (f", {row['n_at_chance']} diverged" if row["n_at_chance"] else "")
    ),
    "both": lambda row, a, b: f"{row[a]} and {row[b]}",
    "count": lambda row, name: format_number(row[name] or None),
    "verdict": lambda row: ": ".join(filter(None, (row["verdict"], row["note"]))),
    "weights": lambda row: (
        row["weights"] + (f" (trained at {row['batch']})" if row["batch"] is not None else "")
    ),
    "statistics": lambda row: "population" if row["statistics"] == PRECISE else row["statistics"],
    "composition": lambda row: row["composition"].replace("_", " "),
    "chosen_rate": lambda row: format_number(row["lr"]) + " (edge)" * row["at_edge"],
    "octaves": lambda row: octaves(row["good_octaves"], row["good_open"]),
    "chosen": lambda row: "yes" if row["chosen"] else "",
}
