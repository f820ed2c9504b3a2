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
    rows = [_set_up(repeats) for repeats in _grouped(timings, SETUP)]
    for rivals in _grouped(rows, (*CELL, "way")):
        fastest = max(rivals, key=lambda row: row["examples_per_s"])
        for row in rivals:
            row["counted"] = row is fastest
    return rows


def _set_up(repeats: Sequence[Row]) -> Row:
    one = repeats[0]
    rates = [row["examples_per_s"] for row in repeats]
    low, middle, high = min(rates), median(rates), max(rates)
    ms = [1000 * one["seeds"] * one["batch"] / rate for rate in (middle, high, low)]
    return {
        **{key: one[key] for key in (*SETUP, *FACTS, *SETTINGS)},
        "layout": " or ".join(sorted({row["layout"] for row in repeats})),
        "n": len(repeats),
        **_extremes("examples_per_s", (middle, low, high)),
        **_extremes("ms_per_update", ms),
        "fraction_of_matmul": middle * one["flop_per_example"] / one["matmul_flop_per_s"],
        **{key: _largest(repeats, key) for key in ("peak_memory_bytes", "peak_allocated_bytes")},
    }


def _extremes(name: str, values: Sequence[float]) -> Row:
    return dict(zip((name, f"{name}_min", f"{name}_max"), values))


def _largest(rows: Sequence[Row], key: str) -> Any:
    return max((row[key] for row in rows if row[key] is not None), default=None)


def _grouped(rows: Iterable[Row], keys: Sequence[str]) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def ratio_rows(timings: Sequence[Row]) -> list[Row]:
    """Return how many times as many examples gnexp trains: per cell, per norm, over everything.

    The scopes "norm" and "all" are one pass over equally many images at every batch size, so their
    rates are harmonic means of medians. ratio, ratio_min, ratio_max: median and range over the
    repeats, each of which timed both ways one after the other, so that a machine whose speed drifts
    slows both. Cells that lack a way are left out.
    """
    counted = {tuple(row[key] for key in SETUP) for row in bench_rows(timings) if row["counted"]}
    timings = [row for row in timings if tuple(row[key] for key in SETUP) in counted]
    pairs = []
    for cell in _grouped(timings, CELL):
        rates = [[t["examples_per_s"] for t in cell if t["way"] == w] for w in (PLAIN, GNEXP)]
        if all(rates):
            pairs.append((cell[0], *rates))
    rows = [_ratio("cell", [pair]) for pair in pairs]
    norms = dict.fromkeys(pair[0]["norm"] for pair in pairs)
    rows += [_ratio("norm", [p for p in pairs if p[0]["norm"] == norm]) for norm in norms]
    return rows + ([_ratio("all", pairs)] if pairs else [])


def _ratio(scope: str, pairs: Sequence[tuple[Row, list[float], list[float]]]) -> Row:
    plain, ours = (_harmonic([median(pair[way]) for pair in pairs]) for way in (1, 2))
    repeats = min(len(rates) for pair in pairs for rates in pair[1:])
    by_repeat = [
        [_harmonic([pair[way][index] for pair in pairs]) for index in range(repeats)]
        for way in (1, 2)
    ]
    ratios = [other / one for one, other in zip(*by_repeat)]
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
        **_extremes("ratio", (median(ratios), min(ratios), max(ratios))),
    }


def _harmonic(rates: Sequence[float]) -> float:
    return len(rates) / sum(1 / rate for rate in rates)
