"""`gnexp bench`: how fast gnexp trains, beside a plain PyTorch loop, on this machine."""

import itertools
from typing import Any

import torch

from gnexp.cli.console import passed_over_lines
from gnexp.config.resolve import bench_run, resolve
from gnexp.config.schema import BenchConfig, TrainConfig, UsageError
from gnexp.config.torchrun import cores
from gnexp.config.unknown import unknown
from gnexp.norms.registry import NORMS
from gnexp.report.benchmark.aggregate import GNEXP, Row, bench_rows, ratio_rows
from gnexp.report.benchmark.figure import draw_bench
from gnexp.report.benchmark.tables import cell_line, closing_lines, write_tables
from gnexp.runner import preflight
from gnexp.runner.benchmark.measurement import PRODUCT_SIZE, Machine, flop_per_example
from gnexp.runner.build import data
from gnexp.runner.plan import output_folder
from gnexp.runner.provenance import now, provenance

FILES = ("timings.csv", "bench.csv", "ratios.csv", "bench.md", "bench.png", "bench.svg")


def bench(config: BenchConfig, command: str) -> int:
    """Time every norm and batch size in both ways, write tables and figure; the exit code."""
    runs, undefined = plan(config)
    for line in passed_over_lines([data.images_of(config.data).summary]):
        print(line)
    folder = output_folder(config.out, config.name, FILES)
    machine = Machine(data.pick_device(config.device), config.seconds, config.workers)
    machine.measure_products(runs[0])
    about = _about(config, machine, runs[0], command)
    if undefined:
        about["facts"]["infeasible"] = "; ".join(undefined)
    for name in ("hardware", "training", "matrix products", *["infeasible"] * bool(undefined)):
        print(f"{name}: {about['facts'][name]}", flush=True)
    timings: list[Row] = []
    failed = False
    for index, run in enumerate(runs):
        where = f"[{index + 1}/{len(runs)}] {run.norm['name']}, batch {run.batch}"
        try:
            flop = flop_per_example(run)
            for repeat in range(1, config.repeats + 1):
                more = {"repeat": repeat, "flop_per_example": flop}
                for way in (machine.plain, machine.gnexp):
                    timings += [{**row, **more} for row in way(run)]
        except RuntimeError as error:  # no memory for it, or a process that died
            failed = True
            print(f"{where}: failed: {error}", flush=True)
        write_tables(folder, timings, about)
        print(f"{where}: {cell_line(timings, run.norm['name'], run.batch)}", flush=True)
    rows, ratios = bench_rows(timings), ratio_rows(timings)
    if ratios:
        draw_bench(rows, ratios, folder / "bench", about["title"])
        print("\n".join(closing_lines(ratios)))
    print(f"bench: {folder / 'bench.md'}")
    return 1 if failed else 0


def plan(config: BenchConfig) -> tuple[list[TrainConfig], list[str]]:
    """Return the resolved run of every cell, and why norms are undefined in the other cells."""
    found = _problems(config)
    runs, undefined = [], []
    for norm, batch in itertools.product(config.norms, config.batches) if not found else ():
        run = resolve(bench_run(config, norm, batch))
        checked, wrong = preflight.check(run)
        found += wrong
        if checked and checked.undefined:
            undefined.append(checked.undefined)
        else:
            runs.append(run)
    if found or not runs:
        raise UsageError("\n".join(dict.fromkeys(found or undefined)))
    return runs, undefined


def _problems(config: BenchConfig) -> list[str]:
    """Return what does not fit the norms, the device or the images, by this command's keys."""
    typed = f"norms=[{','.join(config.norms)}]"
    strange = [norm for norm in config.norms if norm not in NORMS]
    found = [unknown(f"{typed}: {norm} is unknown", norm, NORMS) for norm in strange]
    try:
        device = data.pick_device(config.device)
        size = len(data.images_of(config.data).x_train)
    except ValueError as error:
        return [*found, str(error)]
    if device.type == "cuda" and config.workers not in (None, 1):
        found.append(
            f"workers={config.workers} is for a CPU: on CUDA one process trains all seeds;"
            " leave workers= out"
        )
    if (largest := max(config.batches)) > size:
        found.append(
            f"batches={config.batches}: {largest} is larger than the training set of {size}"
            f" images; use at most {size}"
        )
    return found


def _about(config: BenchConfig, machine: Machine, run: TrainConfig, command: str) -> dict[str, Any]:
    made = provenance(machine.device, command, now())
    images = data.images_of(config.data)
    cuda = machine.device.type == "cuda"
    changed = ", with changes" if made["dirty"] else ""
    commit = f" ({str(made['commit'])[:10]}{changed})" if made["commit"] else ""
    runtime = f", CUDA {torch.version.cuda}" if cuda else ""
    facts = {
        "hardware": f"{made['device']}, {cores()} cores",
        "versions": f"gnexp {made['gnexp']}{commit}, Python {made['python']}, PyTorch"
        f" {made['torch']}{runtime}, {made['platform']}",
        "training": f"{config.model.name} (width {config.model.width}), {images.title} with"
        f" {len(images.x_train):,} training images, {len(run.seeds)} seeds, {config.precision}",
        "timing": f"n = {config.repeats} repeats of about {config.seconds:g} s each",
        "matrix products": _products_text(machine, run.precision),
        "started": made["started"],
        "command": f"`{command}`",
    }
    title = f"{config.model.name}, {len(run.seeds)} seeds, {made['device']}"
    return {"title": f"gnexp bench: {title}", "facts": facts, "cuda": cuda}


def _products_text(machine: Machine, precision: str) -> str:
    size = PRODUCT_SIZE[machine.device.type]
    kind = {"fp32": "float32", "tf32": "float32 as TF32", "bf16": "bfloat16"}[precision]
    reached = []
    for (way, threads), rate in machine.product_flop_per_s.items():
        processes = f"{machine.processes} x " if way == GNEXP else ""
        on = f"{processes}{threads} thread{'s' * (threads > 1)}"
        reached.append(f"{way} {rate / 1e9:,.0f} GFLOP/s ({on})")
    return f"{size} x {size}, {kind}: {', '.join(reached)}"
