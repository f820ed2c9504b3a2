"""The tables of a bench: raw CSV files, and the page and the lines that people read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import Column, Table, format_number, percent, to_csv, to_markdown
from gnexp.report.benchmark.aggregate import (
    BENCH_COLUMNS,
    GNEXP,
    PLAIN,
    RATIO_COLUMNS,
    TIMING_COLUMNS,
    Row,
    bench_rows,
    ratio_rows,
)
from gnexp.store.files import write_whole

HOW = """\
Plain: a loop as PyTorch's tutorials have it, one seed after the other: a `DataLoader` with two
workers over PIL images (crop, flip, `ToTensor`, `Normalize`), stock layers, `torch.optim.SGD`, no
`.item()`. It is given what a user might not have: PIL images that are decoded beforehand, workers
that outlive an epoch. On a CPU it runs with one thread and with one per core; the faster counts,
both are in `bench.csv`.

gnexp: what `gnexp train` does with these seeds in a grid. On a CPU one single-threaded process per
core, all timed at the same moments, each with a stack of seeds of its own, rates added up; on CUDA
one process whose updates of all seeds are one captured graph, in the faster of two layouts.

Both read the same images, train the same network and prepare their data within the time. The start
(processes, loader workers, first updates, capturing) is not counted, nor is evaluation. The two
take turns, and nothing else of the bench works meanwhile. A number is the median over n repeats;
brackets hold the smallest and the largest."""

CPU_MEMORY = (
    "Memory: the largest resident sizes (VmHWM, since their start) of all processes at work, added "
    "up: the loop and its loader workers; the training processes, and the process that waits for "
    "them at its size of that moment. Pages that processes share count in each."
)
CUDA_MEMORY = (
    "Memory: the largest that PyTorch reserved on the device while training "
    "(`torch.cuda.max_memory_reserved`), one seed at a time for the plain loop, all of them for "
    "gnexp. `peak_allocated_bytes` in `bench.csv` is `torch.cuda.max_memory_allocated`, which does "
    "not see what a captured graph keeps."
)


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
    facts = "\n".join(f"- {name}: {text}" for name, text in about["facts"].items())
    tables = [_sweeps(ratios), _throughput(rows, ratios), _cost(rows)]
    memory = CUDA_MEMORY if about["cuda"] else CPU_MEMORY
    parts = [f"# {about['title']}", facts, to_markdown(tables[0]), to_markdown(tables[1])]
    parts += [to_markdown(tables[2]), "## How it was measured", HOW, memory]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _number(value: float) -> str:
    """Return a rate or time with three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else format_number(float(value))


def _spread(value: float, low: float, high: float, text: Callable[[float], str] = _number) -> str:
    """Return a median with its extremes; a single repeat has none."""
    return text(value) if low == high else f"{text(value)} [{text(low)}, {text(high)}]"


def _rate(row: Row) -> str:
    return _spread(*(row[f"examples_per_s{end}"] for end in ("", "_min", "_max")))


def _times(row: Row) -> str:
    return _spread(row["ratio"], row["ratio_min"], row["ratio_max"], "{:.2f}".format)


def setup(row: Row) -> str:
    """Return in words how a set-up ran."""
    if row["way"] == PLAIN:
        return f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    if row["execution"] == "cudagraph":
        text = f"graph of {row['stack']} seed{'s' * (row['stack'] > 1)}"
    else:
        text = (
            f"{row['processes']} process{'es' * (row['processes'] > 1)}"
            f" x {row['stack']} seed{'s' * (row['stack'] > 1)}"
        )
    return text + (f", {row['layout']}" if row["layout"] != "contiguous" else "")


def _sweeps(ratios: Sequence[Row]) -> Table:
    shown = [
        Column("Norm", lambda row: norm_label(row) if row["norm"] else "all", False),
        Column("Batch sizes", lambda row: row["batches"], False),
        Column("Plain (images/s)", lambda row: _number(row["plain_examples_per_s"])),
        Column("gnexp (images/s)", lambda row: _number(row["gnexp_examples_per_s"])),
        Column("gnexp / plain", _times),
        Column("n", lambda row: str(row["n"])),
    ]
    rows = [row for row in ratios if row["scope"] != "cell"]
    caption = "One pass over equally many images at every batch size; rates are harmonic means."
    return Table("sweeps", "The whole sweep", caption, RATIO_COLUMNS, shown, rows)


def _throughput(rows: Sequence[Row], ratios: Sequence[Row]) -> Table:
    merged = [
        {
            **ratio,
            **{row["way"]: row for row in rows if row["counted"] and _same_cell(row, ratio)},
        }
        for ratio in ratios
        if ratio["scope"] == "cell"
    ]
    shown = [
        *(Column("Norm", norm_label, False), Column("Batch", lambda row: str(row["batch"]))),
        Column("Plain (images/s)", lambda row: _rate(row[PLAIN])),
        Column("gnexp (images/s)", lambda row: _rate(row[GNEXP])),
        Column("gnexp / plain", _times),
        Column("n", lambda row: str(row["n"])),
        Column("Plain", lambda row: setup(row[PLAIN]), False),
        Column("gnexp", lambda row: setup(row[GNEXP]), False),
    ]
    caption = "Images of all seeds together, per second."
    return Table("throughput", "Throughput", caption, RATIO_COLUMNS, shown, merged)


def _same_cell(row: Row, other: Row) -> bool:
    return all(row[key] == other[key] for key in ("norm", "groups", "batch"))


def _cost(rows: Sequence[Row]) -> Table:
    ends = ("", "_min", "_max")
    shown = [
        *(Column("Norm", norm_label, False), Column("Batch", lambda row: str(row["batch"]))),
        Column("Way", lambda row: row["way"], False),
        Column("Set-up", setup, False),
        Column(
            "Update of all seeds (ms)",
            lambda row: _spread(*(row[f"ms_per_update{end}"] for end in ends)),
        ),
        Column("Of a matrix product's FLOP/s (%)", lambda row: percent(row["fraction_of_matmul"])),
        Column("Peak memory (MB)", lambda row: _megabytes(row["peak_memory_bytes"])),
    ]
    caption = (
        "The time in which every seed is updated once; what convolutions and linear layers do per "
        "second, forward and backward, over what a large matrix product does on the same threads "
        "or device; peak memory, as below."
    )
    counted = [row for row in rows if row["counted"]]
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
