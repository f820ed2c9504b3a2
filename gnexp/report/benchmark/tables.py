"""The tables of a bench: raw CSV files, and the page and the lines that people read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import Table, Unit, format_number, markdown_row, to_csv
from gnexp.report.benchmark.aggregate import (
    BENCH_COLUMNS,
    CELL,
    GNEXP,
    PLAIN,
    RATIO_COLUMNS,
    TIMING_COLUMNS,
    Row,
    bench_rows,
    ratio_rows,
)
from gnexp.report.templates import render
from gnexp.report.text.phrases import plural
from gnexp.store.files import write_whole


def write_tables(folder: Path, timings: Sequence[Row], about: dict[str, Any]) -> None:
    """Write timings.csv, bench.csv, ratios.csv and bench.md; `about`: see `page`."""
    rows, ratios = bench_rows(timings), ratio_rows(timings)
    for name, columns, content in (
        ("timings", TIMING_COLUMNS, list(timings)),
        ("bench", BENCH_COLUMNS, rows),
        ("ratios", RATIO_COLUMNS, ratios),
    ):
        write_whole(folder / f"{name}.csv", to_csv(Table(name, "", "", columns, [], content)))
    write_whole(folder / "bench.md", page(rows, ratios, about))


def page(rows: Sequence[Row], ratios: Sequence[Row], about: dict[str, Any]) -> str:
    """Return bench.md. about: title, then one line of facts each, as {name: text}."""
    counted = [row for row in rows if row["counted"]]
    ways = {(*(row[key] for key in CELL), row["way"]): row for row in counted}
    cells = [
        (row, *(ways[*(row[key] for key in CELL), way] for way in (PLAIN, GNEXP)))
        for row in ratios
        if row["scope"] == "cell"
    ]
    sweeps = [row for row in ratios if row["scope"] != "cell"]
    words = {"number": _number, "median": _median, "times": _times, "setup": setup}
    words["row"] = markdown_row
    facts = {"sweeps": sweeps, "cells": cells, "counted": counted}
    return render("benchmark/bench.md.j2", **facts, **words, **about)


def _number(value: float) -> str:
    """Return a rate or time with three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else format_number(float(value))


def _median(row: Row, column: str, text: Unit = _number) -> str:
    """Return a median with its extremes; a single repeat has none."""
    middle, low, high = (row[f"{column}{end}"] for end in ("", "_min", "_max"))
    return text(middle) if low == high else f"{text(middle)} [{text(low)}, {text(high)}]"


def _times(row: Row) -> str:
    return _median(row, "ratio", "{:.2f}".format)


def setup(row: Row) -> str:
    """Return in words how a set-up ran."""
    if row["way"] == PLAIN:
        return plural(row["threads"], "thread")
    stack, processes = plural(row["stack"], "seed"), row["processes"]
    parallel = f"{plural(processes, 'process', 'processes')} x {stack}"
    text = f"graph of {stack}" if row["execution"] == "cudagraph" else parallel
    return text + (f", {row['layout']}" if row["layout"] != "contiguous" else "")


def closing_lines(ratios: Sequence[Row]) -> list[str]:
    """Return the table that ends a bench on the terminal."""
    lines = [f"{'norm':<10}{'batch':>7}{'plain':>10}{'gnexp':>10}   gnexp / plain"]
    for row in ratios:
        norm = norm_label(row) if row["norm"] else "all"
        batch = row["batch"] if row["scope"] == "cell" else "all"
        rates = (row[f"{way}_examples_per_s"] for way in (PLAIN, GNEXP))
        shown = "".join(f"{_number(rate):>10}" for rate in rates)
        lines.append(f"{norm:<10}{batch:>7}{shown}   {_times(row)}")
    return lines


def cell_line(timings: Sequence[Row], norm: str, batch: int) -> str:
    """Return the progress line of one cell of a benchmark."""
    here = [row for row in timings if (row["norm"], row["batch"]) == (norm, batch)]
    counted = {row["way"]: row for row in bench_rows(here) if row["counted"]}
    rates = [
        f"{way} {_number(row['examples_per_s'])} images/s ({setup(row)})"
        for way, row in counted.items()
    ]
    ratios = [f"ratio {_times(row)}" for row in ratio_rows(here) if row["scope"] == "cell"]
    return ", ".join([*rates, *ratios]) or "nothing was timed"
