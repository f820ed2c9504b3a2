"""Gradient variance of a study as rows: means over seeds, fitted exponents, and a check.

Two settings are never mixed. Shared weights: one run's weights measured at several batch sizes.
Own weights: each run's weights measured at the batch size it was trained with.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.statistics import Interval, fit_exponent, t_interval, t_quantile

KINDS = ("gamma", "beta", "conv", "linear", "all")
SHARED, OWN = "shared weights", "own weights"
BLOCKS = 32  # of the delete-one-block jackknife behind noise_lo and noise_hi
EXPECTED = -1.0  # the law noise ~ 1/B, for norms that treat each example alone
SEPARATE_EXAMPLES = ("gn", "ln", "in", "none")

Row = dict[str, Any]


def gradient_rows(all_cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell, epoch, measured batch size and kind of parameter.

    The limits of noise_scale = at_batch * noise / signal combine those of noise and signal, hence
    are wider than 95 % needs, and the upper one is inf when signal's interval reaches 0.
    """
    rows = []
    for cell in all_cells:
        shared = shared_epochs(cell)
        for (epoch, *place), points in _points(cell).items():
            weights = SHARED if epoch in shared else OWN
            rows.append({**cell.key, "epoch": epoch, **_gradient(*place, weights, points)})
    return rows


def _gradient(at_batch: int, kind: str, weights: str, points: list[Row]) -> Row:
    noise, signal = _mean(points, "noise"), _mean(points, "signal")
    return {
        **{"at_batch": at_batch, "parameters": kind, "weights": weights},
        **{"n": noise.n, "k": min(p["k"] for p in points)},
        **noise.columns("noise"),
        **signal.columns("signal"),
        **_ratios(at_batch, noise, signal),
        "weight_norm": _average([p["weight_norm"] for p in points]),
        "weight_norm2_noise": _average([p["weight_norm"] ** 2 * p["noise"] for p in points]),
        "interval": "t over seeds" if noise.n > 1 else "jackknife over draws",
    }


def exponent_rows(all_cells: Sequence[Cell], lines: Sequence[Series]) -> list[Row]:
    """Return the fitted exponent of noise against batch size, at shared and at own weights.

    One intercept per seed, one slope. BN's batch 1 is instance norm, so it stays out of the fit
    and stands beside it: `batch_1_ratio` is its noise over what the fit would put there.
    """
    rows = []
    for cell in all_cells:
        epochs = shared_epochs(cell)
        points = [p for (e, _, _), at in _points(cell).items() if e in epochs for p in at]
        rows += _fits(cell.key, SHARED, cell.key["batch"], points, _separates(cell))
    for line in lines:
        points = [
            point
            for cell in line.cells
            for (_, at_batch, _), at in _points(cell).items()
            if at_batch == cell.key["batch"]
            for point in at
        ]
        if len({p["at_batch"] for p in points}) > 1:
            key = {k: v for k, v in line.cells[0].key.items() if k in line.key}
            rows += _fits(key, OWN, None, points, all(map(_separates, line.cells)))
    return rows


def check_rows(all_cells: Sequence[Cell]) -> list[Row]:
    """Return batch times noise beside the per-example trace it must equal at shared weights.

    agree: the trace lies in the 99.7 % jackknife interval of at_batch * noise.
    """
    rows = []
    for cell in all_cells:
        traces = {
            (row["seed"], row["epoch"], row["parameters"]): row
            for row in cell.record.rows("covariance.csv")
        }
        for (epoch, _, kind), points in _points(cell).items() if traces else ():
            for point in points:
                found = traces.get((point["seed"], epoch, kind))
                if found and found["trace"] > 0 and point["noise"] > 0:
                    rows.append({**cell.key, **_check(point, found["trace"], found["n"])})
    return rows


def _check(point: Row, trace: float, examples: int) -> Row:
    half = t_quantile(0.9985, _jackknife_dof(point)) * _error(point)
    at_batch = point["at_batch"]
    total = at_batch * point["noise"]
    lo, hi = total - at_batch * half, total + at_batch * half
    return {
        **{k: point[k] for k in ("seed", "epoch", "at_batch", "parameters", "k")},
        **{"n_examples": examples, "batch_noise": total, "lo997": lo, "hi997": hi},
        **{"trace": trace, "ratio": total / trace, "agree": bool(lo <= trace <= hi)},
    }


def shared_epochs(cell: Cell) -> set[int]:
    """Return the epochs at which the cell's weights were measured at several batch sizes."""
    sizes: dict[int, set[int]] = {}
    for row in cell.record.rows("gradients.csv"):
        sizes.setdefault(row["epoch"], set()).add(row["at_batch"])
    return {epoch for epoch, batches in sizes.items() if len(batches) > 1}


def _points(cell: Cell) -> dict[tuple[int, int, str], list[Row]]:
    """Rows of gradients.csv of the cell's finished seeds, by (epoch, at_batch, kind)."""
    finished = {row["seed"] for row in cell.of("complete")}
    points: dict[tuple[int, int, str], list[Row]] = {}
    for row in cell.record.rows("gradients.csv"):
        if row["parameters"] in KINDS and row["seed"] in finished:
            points.setdefault((row["epoch"], row["at_batch"], row["parameters"]), []).append(row)
    return dict(sorted(points.items(), key=lambda p: (*p[0][:2], KINDS.index(p[0][2]))))


def _fits(
    key: Row, weights: str, batch: int | None, points: list[Row], separates: bool
) -> list[Row]:
    """Return a row per epoch and kind of parameter, of those with a point to fit."""
    groups: dict[tuple[int, int], list[Row]] = {}
    for point in points:
        place = (point["epoch"], KINDS.index(point["parameters"]))
        groups.setdefault(place, []).append(point)
    known = {
        **{k: v for k, v in key.items() if k not in ("batch", "update_batch")},
        **{"weights": weights, "batch": batch, "update_batch": key.get("update_batch")},
        "expected": EXPECTED if separates and weights == SHARED else None,
    }
    found = [(place, _fit(groups[place], key["norm"] == "bn")) for place in sorted(groups)]
    return [
        {**known, "epoch": epoch, "parameters": KINDS[kind], **row}
        for (epoch, kind), row in found
        if row
    ]


def _fit(members: list[Row], is_bn: bool) -> Row | None:
    apart = [p for p in members if is_bn and p["at_batch"] == 1]
    # Zero-gamma makes some gradients exactly zero at the start: they have no logarithm.
    fitted = [p for p in members if p not in apart and p["noise"] > 0 and _error(p) > 0]
    if not fitted:
        return None
    batches = [p["at_batch"] for p in fitted]
    noise, seeds = ([p[name] for p in fitted] for name in ("noise", "seed"))
    fit = fit_exponent(batches, noise, [_error(p) / p["noise"] for p in fitted], seeds)
    return {
        **{**vars(fit), "n_seeds": fit.n_groups},
        "at_batches": " ".join(map(str, sorted(set(batches)))),
        "batch_1_ratio": _beyond_fit(apart, fitted, fit.slope),
    }


def _beyond_fit(apart: list[Row], fitted: list[Row], slope: float) -> float | None:
    """Geometric mean over seeds of noise at batch 1 over the fit's value there."""
    logs = []
    for point in apart:
        own = [p for p in fitted if p["seed"] == point["seed"]]
        if own and point["noise"] > 0 and math.isfinite(slope):
            w = [(_error(p) / p["noise"]) ** -2 for p in own]
            at_one = sum(
                wi * (math.log(p["noise"]) - slope * math.log(p["at_batch"]))
                for wi, p in zip(w, own)
            )
            logs.append(math.log(point["noise"]) - at_one / sum(w))
    return math.exp(sum(logs) / len(logs)) if logs else None


def _separates(cell: Cell) -> bool:
    """Return True when no example's gradient depends on other examples, by table or measurement."""
    return cell.key["norm"] in SEPARATE_EXAMPLES or bool(cell.record.rows("covariance.csv"))


def _mean(points: list[Row], column: str) -> Interval:
    interval = t_interval([p[column] for p in points])
    if interval.n > 1:
        return interval
    return replace(interval, lo=points[0][f"{column}_lo"], hi=points[0][f"{column}_hi"])


def _ratios(at_batch: int, noise: Interval, signal: Interval) -> Row:
    ratio = noise.mean / signal.mean if signal.mean > 0 else math.inf
    lo = max(noise.lo, 0.0) / signal.hi if signal.hi > 0 else math.inf
    hi = noise.hi / signal.lo if signal.lo > 0 else math.inf
    if not noise.mean > 0:
        ratio = lo = hi = math.nan
    return {
        **{"relative_noise": ratio, "noise_scale": at_batch * ratio},
        **{"noise_scale_lo": at_batch * lo, "noise_scale_hi": at_batch * hi},
    }


def _error(point: Row) -> float:
    """Standard error of noise, from its 95 % jackknife interval; nan when it has none."""
    width = point["noise_hi"] - point["noise_lo"]
    return width / (2 * t_quantile(0.975, _jackknife_dof(point)))


def _jackknife_dof(point: Row) -> int:
    return min(BLOCKS, int(point["k"])) - 1


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
