"""Simulate how often a whole answer claims something false, all norms being equal.

python scripts/answer_errors.py [repetitions] prints a line for each kind of study, and writes
results/reference/inference/answers.csv. A claim is "use X" or "X leads Y" in the answer, and
"flat", "lower" or "higher" of a batch size against the reference. Test images are so many that they
add nothing: their part of the standard error is a conservative bound, and errors would be fewer.
"""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.stats import beta

from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.statistics import FLAT, HIGHER, LOWER
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.text.answer import answer
from gnexp.store.study import Study

FOLDER = Path(__file__).parents[1] / "results" / "reference" / "inference"
REFERENCE, LEVEL, SD, IMAGES = 32, 0.6, 0.01, 10**9
GRIDS = {
    "2 norms, 7 batch sizes": (2, (1, 2, 4, 8, 16, 32, 64)),
    "4 norms, 5 batch sizes": (4, (1, 2, 4, 8, 32)),
    "8 norms, 4 batch sizes": (8, (1, 2, 8, 32)),
}
SPREADS = ("equal", "BN 8x at batch 1", "log-normal, sd 0.4")
EQUAL, APART = "equal", "a point apart"  # batch sizes other than the reference beside it
CLAIM = re.compile(r"\b(use|leads)\b")


def study(
    rng: np.random.Generator,
    norms: int,
    batches: tuple[int, ...],
    seeds: int,
    spread: str,
    truth: str,
) -> list[Series]:
    """Return the series of norms that are equal at every batch size, the first of them BN."""
    data = {"classes": list("0123456789"), "test": IMAGES, "train": 1}
    lines = []
    for norm in range(norms):
        result = {"data": data, "pools": "nhw" if norm == 0 else "chw"}
        record = SimpleNamespace(result=result, config={"lr": 0.1})
        name = {"norm": f"own{norm}" if norm else "bn", "groups": None, "channels_per_group": None}
        cells = []
        for batch in batches:
            sd = SD * np.exp(rng.normal(0, 0.4)) if spread == SPREADS[2] else SD
            sd *= 8 if spread == SPREADS[1] and (norm, batch) == (0, 1) else 1
            level = LEVEL - 0.01 * (truth == APART and batch != REFERENCE)
            key = {**name, "batch": batch, "update_batch": batch}
            rows = [
                {"seed": seed, "status": "complete", "test_acc": float(accuracy)}
                for seed, accuracy in enumerate(rng.normal(level, sd, seeds))
            ]
            cells.append(Cell(key, record, rows))
        lines.append(Series(name["norm"], name["norm"], {**name, "update": "= batch"}, cells))
    return lines


def false_claims(lines: list[Series], truth: str) -> tuple[bool, bool]:
    """Return whether the answer names a winner, and whether a batch size is called what it is not.

    A batch size a point below the reference is not flat; called lower, it is called rightly.
    """
    cells = [cell for line in lines for cell in line.cells]
    analysis = StudyAnalysis(Study("", Path(), []), [], cells, cells, lines, REFERENCE)
    named = any(CLAIM.search(sentence) for sentence in answer(analysis))
    verdicts = {row["verdict"] for row in analysis.flatness}
    wrong = {FLAT, HIGHER} if truth == APART else {LOWER, HIGHER}
    return named, bool(verdicts & wrong)


def bound(count: int, repetitions: int) -> float:
    """Return the upper end of Clopper and Pearson's 95 % interval."""
    return float(beta.ppf(0.975, count + 1, repetitions - count)) if count < repetitions else 1.0


def row(grid: str, seeds: int, spread: str, truth: str, repetitions: int) -> dict[str, object]:
    """Return how often studies of one kind claim something false, by claim and by any."""
    norms, batches = GRIDS[grid]
    rng = np.random.default_rng([norms, seeds, SPREADS.index(spread), truth == APART])
    found = np.array(
        [
            false_claims(study(rng, norms, batches, seeds, spread, truth), truth)
            for _ in range(repetitions)
        ]
    )
    either = int(found.any(axis=1).sum())
    return {
        **{"grid": grid, "n": seeds, "spread": spread, "batch sizes": truth},
        **{"repetitions": repetitions, "use or leads": found[:, 0].mean()},
        **{"flat, lower or higher": found[:, 1].mean()},
        **{"any": either / repetitions, "any_hi": bound(either, repetitions)},
    }


def main(repetitions: int) -> None:
    kinds = [(spread, EQUAL) for spread in SPREADS] + [(SPREADS[0], APART)]
    rows = []
    for grid in GRIDS:
        for seeds in (3, 5):
            for spread, truth in kinds:
                rows.append(row(grid, seeds, spread, truth, repetitions))
                told = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in rows[-1].values())
                print("; ".join(told), flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(FOLDER / "answers.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
