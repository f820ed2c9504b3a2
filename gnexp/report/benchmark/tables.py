"""The tables of a bench: raw CSV files, and the page and the lines that people read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import (
    Column,
    Table,
    Unit,
    format_number,
    number,
    percent,
    to_csv,
    to_markdown,
    words,
)
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
    tables = (_sweeps(ratios), _throughput(counted, ratios), _cost(counted))
    return render("benchmark/bench.md.j2", tables=[to_markdown(t) for t in tables], **about)


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


_NORM, _BATCH, _N = Column("Norm", norm_label, False), number("Batch", "batch"), number("n", "n")
_TIMES = Column("gnexp / plain", _times)


def _sweeps(ratios: Sequence[Row]) -> Table:
    shown = [
        Column("Norm", lambda row: norm_label(row) if row["norm"] else "all", False),
        words("Batch sizes", "batches"),
        number("Plain (images/s)", "plain_examples_per_s", _number),
        number("gnexp (images/s)", "gnexp_examples_per_s", _number),
        *(_TIMES, _N),
    ]
    rows = [row for row in ratios if row["scope"] != "cell"]
    caption = "One pass over equally many images at every batch size; rates are harmonic means."
    return Table("sweeps", "The whole sweep", caption, RATIO_COLUMNS, shown, rows)


def _throughput(counted: Sequence[Row], ratios: Sequence[Row]) -> Table:
    ways = {(*(row[key] for key in CELL), row["way"]): row for row in counted}
    cells = [row for row in ratios if row["scope"] == "cell"]
    rows = [
        {**cell, **{way: ways[*(cell[key] for key in CELL), way] for way in (PLAIN, GNEXP)}}
        for cell in cells
    ]
    shown = [
        *(_NORM, _BATCH),
        Column("Plain (images/s)", lambda row: _median(row[PLAIN], "examples_per_s")),
        Column("gnexp (images/s)", lambda row: _median(row[GNEXP], "examples_per_s")),
        *(_TIMES, _N),
        Column("Plain", lambda row: setup(row[PLAIN]), False),
        Column("gnexp", lambda row: setup(row[GNEXP]), False),
    ]
    caption = "Images of all seeds together, per second."
    return Table("throughput", "Throughput", caption, RATIO_COLUMNS, shown, rows)


def _cost(counted: Sequence[Row]) -> Table:
    shown = [
        *(_NORM, _BATCH, words("Way", "way"), Column("Set-up", setup, False)),
        Column("Update of all seeds (ms)", lambda row: _median(row, "ms_per_update")),
        number("Of a matrix product's FLOP/s (%)", "fraction_of_matmul", percent),
        number("Peak memory (MB)", "peak_memory_bytes", _megabytes),
    ]
    caption = (
        "The time in which every seed is updated once; what convolutions and linear layers do per "
        "second, forward and backward, over what a large matrix product does on the same threads "
        "or device; peak memory, as below."
    )
    return Table("cost", "Time, arithmetic and memory", caption, BENCH_COLUMNS, shown, counted)


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:,.0f}"


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
