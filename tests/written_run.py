"""A run with every file there is, none of it trained."""

from pathlib import Path

import numpy as np

from gnexp.store.run import Run

RUN = Path("results/main/gn-b2")


def write_run(folder=RUN, seeds=(0, 1)):
    """Write the run and return it."""
    run = Run.create(folder)
    config = {"norm": {"name": "gn"}, "model": {"name": "tiny"}, "data": {"name": "shapes10"}}
    config |= {"batch": 2, "epochs": 1, "lr": 0.1, "seeds": list(seeds)}
    run.write_config(config)
    run.add_plan({seed: {"step": [f"gn-b2/{seed}"]} for seed in seeds})
    run.write_provenance({"commit": "1234", "started": "2026-01-02T03:04:05"})
    rates = {"lr": 0.1, "train_loss": 2.31, "train_acc": 0.51, "test_loss": 2.21}
    counts = {"epoch": 1, "examples_seen": 64, "test_acc": 0.41, "time_s": 1.5}
    run.add_rows("metrics.csv", ({"seed": seed, **rates, **counts} for seed in seeds))
    numbers = dict.fromkeys(("noise", "noise_lo", "noise_hi", "signal", "signal_lo"), 1.25)
    numbers |= dict.fromkeys(("signal_hi", "relative_noise", "noise_scale", "weight_norm"), 1.75)
    at = {"epoch": 1, "at_batch": 2, "parameters": "all", "k": 64}
    run.add_rows("gradients.csv", ({"seed": seed, **at, **numbers} for seed in seeds))
    of_all = {"epoch": 1, "parameters": "all", "n": 64, "trace": 1.25}
    run.add_rows("covariance.csv", ({"seed": seed, **of_all} for seed in seeds))
    scores = {"n": 40, "accuracy": 0.35, "loss": 2.25}
    fog = {"corruption": "fog", "severity": 1, **scores}
    run.add_rows("shift.csv", ({"seed": seed, **fog} for seed in seeds))
    batches = {"statistics": "running", "composition": "uniform", "at_batch": 2, **scores}
    batches |= {"expected": 0.35, "logit_change": 0.25}
    run.add_rows("batches.csv", ({"seed": seed, **batches} for seed in seeds))
    classes = {"class": "disc", "n": 4, "accuracy": 0.35}
    run.add_rows("classes.csv", ({"seed": seed, **classes} for seed in seeds))
    for seed in seeds:
        run.add_logits(seed, np.full((4, 10), 0.25))
        final = {"status": "complete", "test_acc": 0.41, "test_acc_median5": 0.41, "epochs": 1}
        final |= {"test_loss": 2.21, "train_loss": 2.31, "train_acc": 0.51, "examples_seen": 64}
        data = {"title": "shapes", "train": 60, "test": 40, "checksum": "0" * 16}
        data["classes"] = list("abcdefghij")
        run.add_result(seed, {**final, "train_time_s": 1.5}, config=config, data=data)
        run.set_status(seed, "complete")
    run.write_traceback(1, "Traceback of 12 lines\n")
    run.write_checkpoint(bytes(range(200)))
    return run
