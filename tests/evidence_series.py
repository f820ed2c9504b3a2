"""Series made of given accuracies, for the tests of evidence and answer."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from gnexp.analysis.cells import Cell, Series, norm_label
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.store.study import Study


def make_series(norm, accuracies, groups=None, **key):
    """Return a Series of {batch: accuracies in percent, one per seed; None for a diverged one}.

    test: how many images they are tested on, so many that they hardly matter, 0 for unknown. seen,
    train_acc: images seen by each seed, of 5,000, and its final training accuracy in percent. key:
    what else its cells share; tuned, of cells alone, may be {batch: whether its rate was};
    update_batch: where it does not follow the batch.
    """
    tuned, fixed = key.pop("tuned", None), key.pop("update_batch", None)
    seen, train_acc = key.pop("seen", 200_000), key.pop("train_acc", 90.0)
    data = {"classes": list("abcdefghij"), "test": key.pop("test", 1_000_000), "train": 5_000}
    result = {"data": data, "pools": "nhw" if norm in ("bn", "brn") else "chw"}
    named = {"norm": norm, "groups": groups, "channels_per_group": None}
    cells = []
    for batch, values in sorted(accuracies.items()):
        seeds = [
            {"seed": seed, "status": "diverged" if value is None else "complete"}
            | {"test_acc": None if value is None else value / 100}
            | {"examples_seen": seen, "train_acc": train_acc / 100}
            for seed, value in enumerate(values)
        ]
        rest = {k: v for k, v in key.items() if k != "update"}
        cell_key = {**named, "batch": batch, "update_batch": fixed or batch, **rest}
        if tuned is not None:
            cell_key["tuned"] = tuned[batch] if isinstance(tuned, dict) else tuned
        record = SimpleNamespace(result=result, config={"lr": 0.1}, rows=lambda table: [])
        cells.append(Cell(cell_key, record, seeds))
    shared = {**named, "update": "= batch", **key}
    return Series(norm_label(named), norm, shared, cells)


def analysis_of(lines, reference_batch=32, tuned=(), **options):
    """Return the analysis of a study that holds these series."""
    cells = [cell for line in lines for cell in line.cells]
    study = Study("made-up", Path(), [])
    return StudyAnalysis(study, tuned, cells, cells, lines, reference_batch, **options)


def draw(means, sd=0.3, n=5, seed=0):
    """Return {batch: n accuracies} around the means, in percent."""
    rng = np.random.default_rng(seed)
    return {batch: list(rng.normal(mean, sd, size=n)) for batch, mean in means.items()}
