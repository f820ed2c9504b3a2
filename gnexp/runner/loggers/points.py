"""A stored run as TensorBoard and Weights & Biases are given it."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from gnexp.config.schema import KEYS
from gnexp.store.run import Run

Point = tuple[int, float, dict[str, float]]

_NOT_HYPERPARAMETERS = {name for name, key in KEYS.items() if not key.compared}
# Of gradients at a run's own batch size; layers, which may be many, stay in gradients.csv.
_KINDS = ("all", "gamma", "beta", "conv", "linear")


class LoggedRun:
    """A run's folder as loggers want it: settings, when it began, and points along the images."""

    def __init__(self, run: Run) -> None:
        """Read a run's folder. Raises ValueError for a corrupt document."""
        result = run.result()
        self.name, self.study = run.name, run.folder.resolve().parent.name
        self.config = result.get("config") or run.config()
        self.finished = set(run.finished_seeds())
        self._metrics = run.whole_rows("metrics.csv")[0]
        self._gradients = run.whole_rows("gradients.csv")[0]
        provenance = run.provenance()
        # The first call's: later ones add seeds, and must not change what was written.
        first = [*provenance.get("earlier", []), provenance][0].get("started")
        self.started_s = datetime.fromisoformat(first).timestamp() if first else 0.0

    @property
    def hyperparameters(self) -> dict[str, bool | int | float | str]:
        """The settings that can change the numbers, nested keys joined by dots, without seeds."""
        flat = {k: v for k, v in _flat(self.config) if v is not None}
        return {k: v for k, v in flat.items() if k not in _NOT_HYPERPARAMETERS}

    def points(self, seed: int) -> Iterator[Point]:
        """Yield (epoch, wall time in s, {tag: value}) of a seed, epoch 0 for the initialization.

        Losses in nats, accuracies 0..1. What a validation split scored is named val, not test.
        """
        held_out = "val" if (self.config.get("data") or {}).get("validation") else "test"
        wall_time_s = self.started_s
        metrics = {row["epoch"]: row for row in self._metrics if row["seed"] == seed}
        gradients = [row for row in self._gradients if row["seed"] == seed]
        gradients = [row for row in gradients if row["at_batch"] == self.config.get("batch")]
        for epoch in sorted({*metrics, *(row["epoch"] for row in gradients)}):
            values: dict[str, float] = {}
            if row := metrics.get(epoch):
                wall_time_s += row["time_s"]
                values = {
                    "train/loss": row["train_loss"],
                    "train/acc": row["train_acc"],
                    f"{held_out}/loss": row["test_loss"],
                    f"{held_out}/acc": row["test_acc"],
                    "lr": row["lr"],
                    "examples_seen": float(row["examples_seen"]),
                }
            for row in gradients:
                if row["epoch"] == epoch and row["parameters"] in _KINDS:
                    values[f"gradient_noise/{row['parameters']}"] = row["noise"]
                    values[f"gradient_signal/{row['parameters']}"] = row["signal"]
            if values:
                yield epoch, wall_time_s, values


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value) if isinstance(value, (list, tuple)) else value
