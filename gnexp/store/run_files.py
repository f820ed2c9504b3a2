"""The files of a run: the columns of its tables, and what brings each file back.

Reading, repair, digests, zips and fingerprints of reports all take their lists from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

_TRAIN = "the same 'gnexp train' "
FROM = "from checkpoint.pt"
_MEASURE = "'gnexp measure study={study} what=[{what}]' measures it again"


@dataclass(frozen=True)
class RunFile:
    """One file of a run.

    again: what brings it back, in words. key, values: the columns of a table in their order, each
    with its type; no two rows have the same key. large: no table or report is made of it.
    """

    again: str
    key: Mapping[str, type] = field(default_factory=dict)
    values: Mapping[str, type] = field(default_factory=dict)
    large: bool = False

    @property
    def columns(self) -> dict[str, type]:
        return {**self.key, **self.values}


def _floats(*names: str) -> dict[str, type]:
    return dict.fromkeys(names, float)


_SEED = {"seed": int}
_EPOCH = {**_SEED, "epoch": int}
_SCORES = {"n": int, "accuracy": float, "loss": float}

FILES = {
    "config.yaml": RunFile(f"{_TRAIN}writes it again"),
    "plan.json": RunFile(f"{_TRAIN}plans seeds that had not begun anew"),
    "provenance.json": RunFile("nothing brings its versions and commands back"),
    "status.json": RunFile(f"{_TRAIN}writes it again, results are kept"),
    "result.json": RunFile(f"{_TRAIN}finishes its seeds again {FROM}"),
    "metrics.csv": RunFile(
        f"{_TRAIN}restores it {FROM}",
        _EPOCH,
        {
            **{"examples_seen": int, "lr": float},
            **_floats("train_loss", "train_acc", "test_loss", "test_acc", "time_s"),
        },
    ),
    "gradients.csv": RunFile(
        f"{_TRAIN}restores the run's own points {FROM}; {_MEASURE}",
        {**_EPOCH, "at_batch": int, "parameters": str},
        {
            **{"k": int, **_floats("noise", "noise_lo", "noise_hi")},
            **_floats("signal", "signal_lo", "signal_hi"),
            **_floats("relative_noise", "noise_scale", "weight_norm"),
        },
    ),
    "covariance.csv": RunFile(_MEASURE, {**_EPOCH, "parameters": str}, {"n": int, "trace": float}),
    "shift.csv": RunFile(_MEASURE, {**_SEED, "corruption": str, "severity": int}, _SCORES),
    "batches.csv": RunFile(
        _MEASURE,
        {**_SEED, "statistics": str, "composition": str, "at_batch": int},
        {**_SCORES, **_floats("expected", "logit_change")},
    ),
    "classes.csv": RunFile(_MEASURE, {**_SEED, "class": str}, {"n": int, "accuracy": float}),
    "checkpoint.pt": RunFile(
        "nothing brings the weights back, finished seeds keep their results", large=True
    ),
    "logits.npz": RunFile(f"training more seeds of the run computes it again {FROM}", large=True),
}
TABLES = {name: file for name, file in FILES.items() if file.key}
SMALL = tuple(name for name, file in FILES.items() if not file.large)
# Of which a report is made; a plan says nothing about results.
INPUTS = tuple(name for name in SMALL if name != "plan.json")
# Of a study's own folder.
STUDY_FILES = {
    "tuning.json": RunFile(f"{_TRAIN}writes it again"),
    "optimization_results.yaml": RunFile("nothing brings it back"),
}
