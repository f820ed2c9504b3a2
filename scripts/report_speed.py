"""Time the report of a large study: python scripts/report_speed.py [runs] [FOLDER].

Writes a study of made-up numbers through the store (5 seeds, 10 epochs, three measurements of the
gradients in each run), builds its report from nothing and again, and prints how long each took.
With a FOLDER the study stays there, and is not written again.
"""

import itertools
import json
import math
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from gnexp.analysis.study_analysis import study_analysis
from gnexp.report.study_report import build_report
from gnexp.store.run import Run
from gnexp.store.study import load_study

NORMS = [("bn", None), ("gn", 2), ("gn", 4), ("gn", 8), ("gn", 16), ("ln", None), ("in", None)]
NORMS += [("none", None)]
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SEEDS, EPOCHS = range(5), 10
KINDS = {"gamma": 0.4, "beta": 0.3, "conv": 4.0, "linear": 0.6, "all": 5.0, "conv1": 0.2}


def write_study(folder: Path, runs: int) -> None:
    """Write a study of that many runs: 8 norms x 7 batch sizes x as many learning rates."""
    rates = [round(0.01 * 1.25**i, 6) for i in range(math.ceil(runs / (8 * 7)))]
    grid = itertools.product(rates, NORMS, BATCHES)
    for index, (rate, (norm, groups), batch) in enumerate(itertools.islice(grid, runs)):
        _write_run(folder, index, norm, groups, batch, rate)


def _write_run(
    folder: Path, index: int, norm: str, groups: int | None, batch: int, rate: float
) -> None:
    rng = np.random.default_rng(index)
    config = {"norm": {"name": norm, "eps": 1e-05}, "groups": groups, "channels_per_group": None}
    config |= {"model": {"name": "resnet20"}, "data": {"name": "cifar10", "title": None}}
    config |= {"batch": batch, "update_batch": batch, "seeds": list(SEEDS), "epochs": EPOCHS}
    config |= {"lr": rate, "study": folder.name}
    level = 0.8 - 0.1 * abs(math.log(rate / 0.1)) - 0.3 * (norm == "bn") / batch
    finals = [min(max(level + rng.normal(0, 0.004), 0.1), 1.0) for _ in SEEDS]
    run = Run.create(folder / f"{norm}-g{groups}-b{batch}-lr{rate:g}-{index:04d}")
    with run.writing():
        run.write_config(config)
        run.write_provenance(
            {"commit": "0" * 40, "dirty": False, "gnexp": "0.1.0", "device": "cpu"}
            | {"command": "gnexp train -m ...", "started": "2026-01-01T00:00:00"}
        )
        run.add_rows(
            "metrics.csv",
            (
                {"seed": seed, "epoch": epoch, "examples_seen": 50_000 * epoch, "lr": rate}
                | {"train_loss": 2.3 / epoch, "train_acc": 0.9, "test_loss": 1.0}
                | {"test_acc": final - 0.2 / epoch, "time_s": 3.0}
                for seed, final in zip(SEEDS, finals)
                for epoch in range(1, EPOCHS + 1)
            ),
        )
        run.add_rows(
            "gradients.csv",
            (
                _gradients(rng, seed, epoch, batch, kind)
                for seed, epoch, kind in itertools.product(SEEDS, (0, 5, 10), KINDS)
            ),
        )
        for seed in SEEDS[:1]:
            run.set_status(seed, "complete")
        numbers = {"status": "complete", "test_loss": 1.0, "train_loss": 0.5, "train_acc": 0.9}
        numbers |= {"epochs": EPOCHS, "examples_seen": 500_000, "train_time_s": 30 + 100 / batch}
        numbers |= {"device": "cpu", "execution": "eager", "stack": 5}
        data = {"title": "CIFAR-10", "train": 50_000, "test": 10_000, "checksum": "0" * 16}
        data["classes"] = list("abcdefghij")
        seeds = {s: {**numbers, "test_acc": f, "test_acc_median5": f} for s, f in enumerate(finals)}
        run.write_result({"run": run.name, "config": config, "data": data, "seeds": seeds})


def _gradients(
    rng: np.random.Generator, seed: int, epoch: int, batch: int, kind: str
) -> dict[str, float | int | str]:
    noise = KINDS[kind] / batch * math.exp(rng.normal(0, 0.05))
    return {
        **{"seed": seed, "epoch": epoch, "at_batch": batch, "parameters": kind, "k": 64},
        **{"noise": noise, "noise_lo": 0.9 * noise, "noise_hi": 1.1 * noise},
        **{"signal": 0.3, "signal_lo": 0.1, "signal_hi": 0.5, "relative_noise": noise / 0.3},
        **{"noise_scale": batch * noise / 0.3, "weight_norm": 12.0},
    }


def main(runs: int, folder: Path) -> None:
    """Write the study if it is not there, and print one JSON line of times and versions."""
    if not folder.is_dir():
        write_study(folder, runs)
    report = folder / "report"
    for file in report.glob("*") if report.is_dir() else []:
        file.unlink()
    (report / ".made.json").unlink(missing_ok=True)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        files = build_report(study_analysis(load_study(folder)))
        times.append(round(time.perf_counter() - start, 2))
    libraries = ("gnexp", "numpy", "pandas", "scipy", "matplotlib", "jinja2")
    found = {"runs": sum(Run(f).exists() for f in folder.iterdir()), "seeds_per_run": len(SEEDS)}
    found |= {"report_s": times[0], "unchanged_report_s": times[1]}
    found |= {"page_bytes": files["index.html"].stat().st_size}
    versions = {name: metadata.version(name) for name in libraries}
    print(json.dumps(found | {"python": platform.python_version(), **versions}))


if __name__ == "__main__":
    amount = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    if len(sys.argv) > 2:
        main(amount, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(amount, Path(temporary) / "large")
