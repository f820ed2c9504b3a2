"""Instruments at the last weights of stored runs."""

from dataclasses import dataclass

import torch
from torch import nn

from gnexp.config.schema import ShiftConfig
from gnexp.measure.class_accuracy import calibration_error
from gnexp.runner.final_metrics import (
    _forget_reasons,
    class_head,
    class_rows,
    corruption_names,
    end_numbers,
    measure_asked_for,
)
from gnexp.runner.process_pool import Emit
from gnexp.runner.stored_runs import MeasureTask, StoredRun
from gnexp.store.run import Run
from gnexp.training.evaluate import Scores, evaluate
from gnexp.training.malloc import keep_malloc_arena
from gnexp.training.precision import matrix_precision


@dataclass(frozen=True)
class LastTask(MeasureTask):
    """Instruments to run at the last weights of one stored run."""

    what: tuple[str, ...]
    shift: ShiftConfig

    def measure(self, run: Run, emit: Emit) -> None:
        """Measure every complete seed."""
        stored = StoredRun(run, self)
        if stored.device.type == "cpu":
            keep_malloc_arena()
        for seed in stored.seeds:
            what = [name for name in self.what if not _is_measured(stored, seed, name, self.shift)]
            if not what:
                continue
            if set(what) - {"classes"}:
                model = stored.model(seed)
                plain = _plain(stored, model)
                if "decomposition" in what:
                    numbers = end_numbers(stored.config, model, stored.images, seed, plain)
                    run.add_result(seed, {**stored.numbers[seed], **numbers})
                measure_asked_for(run, stored.config, model, stored.images, seed, what, self.shift)
            if "classes" in what:
                _measure_classes(stored, seed)
            _forget_reasons(run, seed, what)
            emit({"text": f"{run.name}, seed {seed}: measured {', '.join(what)}"})


def _plain(stored: StoredRun, model: nn.Module) -> Scores:
    with matrix_precision(stored.config.precision):
        return evaluate(model, stored.images, precision=stored.config.precision)


def _measure_classes(stored: StoredRun, seed: int) -> None:
    """Store the classes of one seed, from its logits where they are, else from its weights."""
    run, images = stored.run, stored.images
    if seed not in run.logits():
        logits_NK = _plain(stored, stored.model(seed)).logits_NK
        run.add_logits(seed, logits_NK.cpu().numpy())
    logits_NK = torch.from_numpy(run.logits()[seed]).float().to(images.y_test.device)
    run.add_rows("classes.csv", class_rows(logits_NK, images, seed))
    ece = calibration_error(logits_NK, images.y_test)
    numbers = run.result()["seeds"][str(seed)]
    run.add_result(seed, {"ece": ece, **numbers}, **class_head(run, images))


def _is_measured(stored: StoredRun, seed: int, name: str, shift: ShiftConfig) -> bool:
    run = stored.run
    if name in stored.numbers[seed].get("unmeasured", {}):
        return False
    if name == "decomposition":
        return "test_acc_population_augmented" in stored.numbers[seed]
    rows = [row for row in run.rows(f"{name}.csv") if row["seed"] == seed]
    if name != "shift":
        return bool(rows)
    wanted = {(c, s) for c in corruption_names(shift) for s in shift.severities}
    images = min(shift.images or len(stored.images.x_test), len(stored.images.x_test))
    return wanted <= {(r["corruption"], r["severity"]) for r in rows if r["n"] == images}
