"""A study's runs as rows, cells and series: what may be averaged, and what may be compared.

A cell is one configuration with all its seeds. A series is the cells of one norm that differ in
batch size alone (or in what follows from it), and so make one line of a figure.
"""

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gnexp.analysis import statistics
from gnexp.analysis.compared_keys import (
    BASE,
    NOT_PRIVATE,
    OF_A_NORM,
    cell_key,
    is_trial,
    key_text,
    varying,
)
from gnexp.store.study import Record

if TYPE_CHECKING:
    import numpy as np

NORM_LABELS = {
    **{"bn": "BN", "gn": "GN", "ln": "LN", "in": "IN", "ln2d": "LN2d", "rms": "RMSNorm"},
    **{"dyt": "DyT", "frn": "FRN", "evonorm_b0": "EvoNorm-B0", "evonorm_s0": "EvoNorm-S0"},
    **{"brn": "BRN", "gbn": "Ghost BN", "syncbn": "SyncBN", "switchable": "Switchable"},
    **{"online": "Online", "bn_frozen": "frozen BN", "gn_ws": "GN+WS", "none": "no norm"},
    "none_fixup": "no norm, Fixup",
}
RUN_COLUMNS = (
    *("run", "norm", "groups", "channels_per_group", "model", "data", "batch", "update_batch"),
    *("lr", "seed", "status", "execution", "stack", "test_acc", "test_acc_median5", "test_loss"),
    *("train_loss", "train_acc", "epochs", "examples_seen", "train_time_s", "device"),
)
# Of runs trained with DP-SGD, where there are any.
PRIVACY_COLUMNS = ("epsilon_spent", "delta", "noise_multiplier", "clip", "sampling_rate")
NUMBERS = RUN_COLUMNS[RUN_COLUMNS.index("test_acc") : RUN_COLUMNS.index("device")]

# Across these a comparison of batch sizes means nothing, even where they follow the batch size.
_NEVER_ONE_SERIES = ("model", "data", "norm.", "model.", "data.", "init_")
_CHECKSUMS = {"data.checksum": "images", "model.code": "model code", "norm.code": "norm code"}


@dataclass
class Cell:
    """One configuration: its key (BASE columns and those that vary), its run, its seeds' rows.

    records: every run that its seeds come from, `record` being the first.
    """

    key: dict[str, Any]
    record: Record
    seeds: list[dict[str, Any]]
    records: list[Record] = field(default_factory=list)

    def of(self, status: str) -> list[dict[str, Any]]:
        """Return the rows of the seeds with this status."""
        return [row for row in self.seeds if row["status"] == status]

    def numbers(self, column: str, chance: float | None = None) -> dict[int, float]:
        """Return {seed: number} of the complete seeds for which it is known.

        chance: what each diverged seed counts as; left out without it, and where the number is
        known of no complete seed.
        """
        complete = self.of("complete")
        known = {
            row["seed"]: row[column]
            for row in complete
            if row.get(column) is not None and math.isfinite(row[column])
        }
        if chance is None or (complete and not known):
            return known
        return known | {row["seed"]: chance for row in self.of("diverged")}

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each complete seed, last epoch, 0..1."""
        return [*self.numbers("test_acc").values()]

    @property
    def scores(self) -> dict[int, float]:
        """{seed: accuracy} with each diverged seed at chance, as tests and answers use them."""
        return self.numbers("test_acc", 1 / self.classes)

    @property
    def scored(self) -> list[float]:
        return [*self.scores.values()]

    @property
    def mean(self) -> float:
        """The mean of `scored`; -1 without a finished seed."""
        return math.fsum(self.scored) / len(self.scored) if self.scored else -1.0

    @cached_property
    def scored_mean(self) -> statistics.Interval:
        """The mean of `scored` with its 95 % t interval, which may leave [0, 1]."""
        return statistics.t_interval(self.scored)

    @property
    def classes(self) -> int:
        return len(self.record.result.get("data", {}).get("classes", ())) or 10

    @property
    def test_images(self) -> int:
        return int(self.record.result.get("data", {}).get("test") or 0)

    @property
    def diverged(self) -> int:
        return len(self.of("diverged"))

    @property
    def correct(self) -> dict[int, "np.ndarray"]:
        """Return {seed: whether each test image is right}, in stored order, where it is recorded.

        bool (N,); the mean of one is its seed's test_acc. Complete seeds alone.
        """
        import numpy as np

        texts = {row["seed"]: row["correct"] for row in self.of("complete") if row.get("correct")}
        packed = {s: np.frombuffer(base64.b64decode(x), np.uint8) for s, x in texts.items()}
        return {s: np.unpackbits(x, count=self.test_images).astype(bool) for s, x in packed.items()}

    @cached_property
    def accuracy(self) -> tuple[statistics.Interval, str]:
        """The survivors' mean with its 95 % interval, and what the interval is over."""
        return accuracy_interval(self.accuracies, self.test_images)

    def measured(self, table: str) -> dict[int, list[dict[str, Any]]]:
        """Return {seed: rows} of a table such as "shift.csv", for the complete seeds in it."""
        complete = {row["seed"] for row in self.of("complete")}
        found: dict[int, list[dict[str, Any]]] = {}
        for record in self.records:
            for row in record.rows(table):
                if row["seed"] in complete and record.numbers(row["seed"]):
                    found.setdefault(row["seed"], []).append(row)
        return found


@dataclass
class Series:
    """Cells of one norm along the batch size; `key` is what they share."""

    label: str
    norm: str
    key: dict[str, Any]
    cells: list[Cell]


def accuracy_interval(accuracies: Sequence[float], images: int) -> tuple[statistics.Interval, str]:
    """Return the mean over seeds with its 95 % interval in [0, 1], and what the interval is over.

    One seed: Wilson's interval over its test images, which says nothing about other seeds.
    """
    interval = statistics.t_interval(accuracies).within(0.0, 1.0)
    if interval.n != 1:
        return interval, "t over seeds" if interval.n else ""
    lo, hi = statistics.binomial_interval(interval.mean, images)
    return statistics.Interval(interval.mean, math.nan, 1, lo, hi), "binomial over test images"


def measured_columns(cell: Cell, here: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return n, images, accuracy and loss of rows of a measured table, one per seed of the cell."""
    images = min(row["n"] for row in here)
    accuracy, over = accuracy_interval([row["accuracy"] for row in here], images)
    return {
        **{"n": accuracy.n, "images": images, "n_diverged": cell.diverged},
        **{**accuracy.columns("accuracy"), "interval": over},
        **statistics.t_interval([row["loss"] for row in here]).columns("loss_nats"),
    }


def run_rows(runs: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one row per run and seed: RUN_COLUMNS, `why`, and other config keys that vary.

    Where runs hold images out, `split` tells what test_acc and test_loss are of.
    """
    extras = varying(runs)
    rows = [_run_row(r, cell_key(r, extras), seed) for r in runs for seed in r.statuses]
    order = (*RUN_COLUMNS, *(e for e in extras if e not in RUN_COLUMNS))
    order += PRIVACY_COLUMNS * any(row["epsilon_spent"] is not None for row in rows)
    order += ("split",) * any(row["split"] == "validation" for row in rows)
    return [{c: row[c] for c in (*order, "why")} for row in sorted(rows, key=row_order)]


def _run_row(record: Record, key: dict[str, Any], seed: int) -> dict[str, Any]:
    state, numbers = record.statuses[seed], record.numbers(seed) or _progress(record, seed)
    return {
        "run": record.name,
        **key,
        "model": record.config.get("model", {}).get("name"),
        "data": record.config.get("data", {}).get("name"),
        "lr": record.config.get("lr"),
        "seed": seed,
        "status": state.get("status"),
        **{c: numbers.get(c) for c in ("execution", "stack", *NUMBERS)},  # epochs: not those asked
        "device": numbers.get("device") or record.provenance.get("device"),
        **{c: numbers.get(c) for c in PRIVACY_COLUMNS},
        "split": "validation" if is_trial(record) else "test",
        "why": state.get("why", ""),
    }


def cells(runs: Sequence[Record], extras: Sequence[str] | None = None) -> list[Cell]:
    """Return the cells that have a finished seed, ordered by norm, groups, other keys and batch.

    extras: the keys beyond BASE that tell cells apart, by default those that vary among the runs.
    """
    extras = varying(runs) if extras is None else extras
    alike: dict[str, list[Record]] = {}
    for record in runs:
        if any(record.numbers(seed) for seed in record.statuses):
            alike.setdefault(key_text(cell_key(record, extras)), []).append(record)
    found = []
    for records in alike.values():
        whole = Cell(cell_key(records[0], extras), records[0], _seed_rows(records), records)
        if len({row["seed"] for row in whole.seeds}) == len(whole.seeds):
            found.append(whole)
            continue
        # They differ in something that is not known here: never average them.
        for record in records:
            key = {**whole.key, "run": record.name}
            found.append(Cell(key, record, _seed_rows([record]), [record]))
    return sorted(found, key=lambda cell: row_order(cell.key))


def _seed_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "status": state.get("status"), **record.numbers(seed)}
        for record in records
        for seed, state in record.statuses.items()
        if record.numbers(seed)
    ]


def series(all_cells: Iterable[Cell]) -> list[Series]:
    """Return the lines along the batch size: cells of one norm that differ in nothing but it.

    A study may hold both update_batch = batch and a fixed update_batch: those are two series of
    one norm, and a cell where the two coincide belongs to both.
    """
    all_cells = list(all_cells)
    splitting = _splitting(all_cells)
    alike: dict[str, list[Cell]] = {}
    shared = [{c: v for c, v in cell.key.items() if c in splitting} for cell in all_cells]
    for cell, key in zip(all_cells, shared):
        alike.setdefault(key_text(key), []).append(cell)
    lines: dict[str, Series] = {}
    for cell, key in zip(all_cells, shared):
        for update in _update_rules(cell, alike[key_text(key)]):
            whole = {"norm": cell.key["norm"], **key, "update": update}
            line = lines.setdefault(key_text(whole), Series("", cell.key["norm"], whole, []))
            line.cells.append(cell)
    keys = [line.key for line in lines.values()]
    for line in lines.values():
        line.cells.sort(key=lambda cell: cell.key["batch"])
        line.label = series_label(line.key, keys)
    return [*lines.values()]


def series_label(key: Mapping[str, Any], keys: list[Mapping[str, Any]]) -> str:
    """Return a short name for people: the norm, its groups, and what tells the series apart."""
    texts = [chosen(c, key[c], [other.get(c) for other in keys]) for c in telling(key, keys)]
    return ", ".join([norm_label(key), *texts])


def line_names(keys: Sequence[Mapping[str, Any]], along: Sequence[str]) -> list[str]:
    """Return the name of the line that each cell is on; along: what tells no line from another."""
    lines = []
    for key in keys:
        update = "= batch" if key["update_batch"] == key["batch"] else str(key["update_batch"])
        kept = {k: v for k, v in key.items() if k not in ("update_batch", *along)}
        lines.append({**kept, "update": update})
    return [series_label(line, lines) for line in lines]


def telling(key: Mapping[str, Any], keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns, beyond norm and groups, that tell a series from those with these keys."""
    found = []
    for column in key:
        of_the_norm = column.startswith(OF_A_NORM)  # which other norms need not have
        among = [k for k in keys if not of_the_norm or k["norm"] == key["norm"]]
        differ = len({key_text(other.get(column)) for other in among}) > 1
        if differ and column not in ("norm", "groups", "channels_per_group"):
            found.append(column)
    return found


def chosen(key: str, value: Any, values: Sequence[Any]) -> str:
    """Return what a person chose: 'model=resnet8', 'from scratch'; never a checksum.

    values: of the key among all that are to be told apart; those that read alike are numbered.
    """
    text = _chosen(key, value)
    alike = [other for other in dict.fromkeys(values) if _chosen(key, other) == text]
    return text if len(alike) < 2 else f"{text} (version {alike.index(value) + 1})"


def _chosen(key: str, value: Any) -> str:
    if key in _CHECKSUMS:
        return _CHECKSUMS[key]
    if key == "init_from":
        return f"from {re.sub(r' [(][^()]*[)]$', '', str(value))}" if value else "from scratch"
    if key == "update":
        return f"update_batch={'batch' if value == '= batch' else value}"
    if key == "epsilon" and value == NOT_PRIVATE:
        return "not private"
    key = key.removeprefix("norm.")
    return f"{key} not set" if value is None else f"{key}={as_typed(value)}"


def as_typed(value: Any) -> str:
    """Return a key's value as one types it: null, true, 0.1."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def norm_label(key: Mapping[str, Any]) -> str:
    """Return BN, GN(8), GN(16 per group), or an own norm's name."""
    label = NORM_LABELS.get(key["norm"], str(key["norm"]))
    if key.get("channels_per_group") is not None:
        return f"{label}({key['channels_per_group']} per group)"
    return f"{label}({key['groups']})" if key.get("groups") is not None else label


def norm_rank(norm: str) -> tuple[int, str]:
    """Return a sort key: the built-in norms in their usual order, then the others by name."""
    names = list(NORM_LABELS)
    return (names.index(norm), "") if norm in names else (len(names), norm)


def _splitting(all_cells: list[Cell]) -> set[str]:
    """Keys that make separate series: those that vary where norm, groups and batch do not."""
    keys = {key for cell in all_cells for key in cell.key}
    always = {k for k in keys if k.startswith(_NEVER_ONE_SERIES)}
    return {"norm", "groups", "channels_per_group"} | always | telling_apart(all_cells)


def telling_apart(all_cells: Iterable[Cell]) -> set[str]:
    """Return the keys by which cells differ that agree in BASE."""
    seen: dict[tuple[str, str], set[str]] = {}
    for cell in all_cells:
        base = key_text([cell.key[column] for column in BASE])
        for key, value in cell.key.items():
            seen.setdefault((key, base), set()).add(repr(value))
    return {key for (key, _), values in seen.items() if len(values) > 1}


def _update_rules(cell: Cell, like: Sequence[Cell]) -> list[str]:
    """Return the series a cell lies on: '= batch', and its fixed update_batch if others use it.

    like: the cells that share with it all but the batch sizes.
    """
    own = {c.key["update_batch"] for c in like if c.key["update_batch"] != c.key["batch"]}
    update, batch = cell.key["update_batch"], cell.key["batch"]
    if update != batch:
        return [str(update)]
    follows = {c.key["batch"] for c in like if c.key["update_batch"] == c.key["batch"]}
    rules = [str(update)] if update in own else []
    return rules if follows <= own and rules else ["= batch", *rules]


def _progress(record: Record, seed: int) -> dict[str, Any]:
    """Return the progress of an unfinished seed, without accuracies, which are not results yet."""
    rows = record.metrics[record.metrics["seed"] == seed]
    if rows.empty:
        return {}
    return {"epochs": len(rows), "examples_seen": int(rows["examples_seen"].max())}


def row_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a sort key: norm, groups, other keys, update batch, batch, seed."""

    def number(value: Any) -> tuple[bool, float, str]:
        is_number = isinstance(value, (int, float))
        return (is_number, value if is_number else 0, "" if is_number else str(value))

    apart = {*BASE, *NUMBERS, "why", "status", "run", "seed"}
    ordered = ["groups", "channels_per_group", *(c for c in row if c not in apart)]
    ordered += ["update_batch", "batch", "seed", "run"]
    return (norm_rank(row["norm"]), *(number(row.get(column)) for column in ordered))
