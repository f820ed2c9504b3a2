"""From timings to what is reported: medians and spreads of a cell, and ratios of the two ways.

A cell is a norm at a batch size; a timing is one repeat of one way, with one number of threads.
Rates are examples of all seeds per second.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]

PLAIN, GNEXP = "plain", "gnexp"
CELL = ("norm", "groups", "batch")
SETUP = (*CELL, "way", "threads")
SETTINGS = ("seeds", "model", "width", "data", "precision", "device")
FACTS = (
    *("processes", "stack", "layout", "execution", "parameters", "examples_per_epoch"),
    *("flop_per_example", "matmul_flop_per_s"),
)
TIMING_COLUMNS = (
    *(*SETUP, "repeat", "updates", "examples", "time_s", "examples_per_s"),
    *("peak_memory_bytes", "peak_allocated_bytes", *FACTS, *SETTINGS),
)
BENCH_COLUMNS = (
    *(*SETUP, "counted", "n", "examples_per_s", "examples_per_s_min", "examples_per_s_max"),
    *("ms_per_update", "ms_per_update_min", "ms_per_update_max", "fraction_of_matmul"),
    *("peak_memory_bytes", "peak_allocated_bytes", *FACTS, *SETTINGS),
)
RATIO_COLUMNS = (
    *("scope", "norm", "groups", "batch", "batches", "n", "plain_examples_per_s"),
    *("gnexp_examples_per_s", "ratio", "ratio_min", "ratio_max"),
)


def bench_rows(timings: Sequence[Row]) -> list[Row]:
    """Return a row per set-up: medians, extremes and the largest memory over its repeats.

    counted: whether ratios use it; of the plain loop's numbers of threads the faster one.
    ms_per_update: the time in which every seed is updated once.
    """
    rows = []
    for repeats in _grouped(timings, SETUP):
        one = repeats[0]
        rates = [row["examples_per_s"] for row in repeats]
        middle = {"": median(rates), "_min": min(rates), "_max": max(rates)}
        ms = {end: 1000 * one["seeds"] * one["batch"] / rate for end, rate in middle.items()}
        rows.append(
            {
                **{key: one[key] for key in (*SETUP, *FACTS, *SETTINGS)},
                "layout": " or ".join(sorted({row["layout"] for row in repeats})),
                "counted": _counted(timings, one),
                "n": len(repeats),
                **{f"examples_per_s{end}": rate for end, rate in middle.items()},
                "ms_per_update": ms[""],
                **{"ms_per_update_min": ms["_max"], "ms_per_update_max": ms["_min"]},
                "fraction_of_matmul": middle[""]
                * one["flop_per_example"]
                / one["matmul_flop_per_s"],
                **{key: _largest(repeats, key) for key in _MEMORY},
            }
        )
    return rows


_MEMORY = ("peak_memory_bytes", "peak_allocated_bytes")


def _largest(rows: Sequence[Row], key: str) -> Any:
    return max((row[key] for row in rows if row[key] is not None), default=None)


def _grouped(rows: Iterable[Row], keys: Sequence[str]) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def _rates(timings: Iterable[Row], like: Row) -> list[float]:
    """Return the rates of all repeats of one set-up."""
    return [t["examples_per_s"] for t in timings if all(t[key] == like[key] for key in SETUP)]


def _counted(timings: Sequence[Row], row: Row) -> bool:
    ways = [t for t in timings if all(t[key] == row[key] for key in (*CELL, "way"))]
    best = max((repeats[0] for repeats in _grouped(ways, SETUP)), key=lambda t: _median(ways, t))
    return best["threads"] == row["threads"]


def _median(timings: Iterable[Row], like: Row) -> float:
    return median(_rates(timings, like))


def ratio_rows(timings: Sequence[Row]) -> list[Row]:
    """Return how many times as many examples gnexp trains: per cell, per norm, over everything.

    The scopes "norm" and "all" are one pass over equally many images at every batch size, so their
    rates are harmonic means of medians. ratio, ratio_min, ratio_max: median and range over the
    repeats, each of which timed both ways one after the other, so that a machine whose speed drifts
    slows both. Cells that lack a way are left out.
    """
    pairs = []
    for cell in _grouped(timings, CELL):
        counted = [t for t in cell if _counted(timings, t)]
        rates = [[t["examples_per_s"] for t in counted if t["way"] == w] for w in (PLAIN, GNEXP)]
        if all(rates):
            pairs.append((cell[0], *rates))
    rows = [_ratio("cell", [pair]) for pair in pairs]
    norms = dict.fromkeys(pair[0]["norm"] for pair in pairs)
    rows += [_ratio("norm", [p for p in pairs if p[0]["norm"] == norm]) for norm in norms]
    return rows + ([_ratio("all", pairs)] if pairs else [])


def _ratio(scope: str, pairs: Sequence[tuple[Row, list[float], list[float]]]) -> Row:
    plain, ours = (_harmonic([median(pair[way]) for pair in pairs]) for way in (1, 2))
    repeats = min(len(rates) for pair in pairs for rates in pair[1:])
    each = []
    for index in range(repeats):
        one = [_harmonic([pair[way][index] for pair in pairs]) for way in (1, 2)]
        each.append(one[1] / one[0])
    first = pairs[0][0]
    batches = sorted({pair[0]["batch"] for pair in pairs})
    return {
        "scope": scope,
        "norm": None if scope == "all" else first["norm"],
        "groups": None if scope == "all" else first["groups"],
        "batch": first["batch"] if scope == "cell" else None,
        "batches": " ".join(map(str, batches)),
        "n": repeats,
        "plain_examples_per_s": plain,
        "gnexp_examples_per_s": ours,
        "ratio": median(each),
        "ratio_min": min(each),
        "ratio_max": max(each),
    }


def _harmonic(rates: Sequence[float]) -> float:
    return len(rates) / sum(1 / rate for rate in rates)
