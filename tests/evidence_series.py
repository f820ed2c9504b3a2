"""Series made of given accuracies, for the tests of evidence and answer."""

from types import SimpleNamespace

import numpy as np

from gnexp.study.cells import Cell, Series, norm_label


def make_series(norm, accuracies, groups=None, **key):
    """Return a Series of {batch: accuracies in percent, one per seed; None for a diverged one}.

    key: what else its cells share. test: how many images they are tested on, so many that they
    hardly matter, 0 for unknown. tuned, of cells alone, may be {batch: whether its rate was}.
    """
    tuned, test = key.pop("tuned", None), key.pop("test", 1_000_000)
    pools = "nhw" if norm in ("bn", "brn") else "chw"
    named = {"norm": norm, "groups": groups, "channels_per_group": None}
    cells = []
    for batch, values in sorted(accuracies.items()):
        seeds = [
            {"seed": seed, "status": "diverged" if value is None else "complete"}
            | {"test_acc": None if value is None else value / 100}
            for seed, value in enumerate(values)
        ]
        rest = {k: v for k, v in key.items() if k != "update"}
        cell_key = {**named, "batch": batch, "update_batch": batch, **rest}
        if tuned is not None:
            cell_key["tuned"] = tuned[batch] if isinstance(tuned, dict) else tuned
        result = {"data": {"classes": list("abcdefghij"), "test": test}, "pools": pools}
        cells.append(Cell(cell_key, SimpleNamespace(result=result, config={}), seeds))
    shared = {**named, "update": "= batch", **key}
    return Series(norm_label(named), norm, shared, cells)


def draw(means, sd=0.3, n=5, seed=0):
    """Return {batch: n accuracies} around the means, in percent."""
    rng = np.random.default_rng(seed)
    return {batch: list(rng.normal(mean, sd, size=n)) for batch, mean in means.items()}
