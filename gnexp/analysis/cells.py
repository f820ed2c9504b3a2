"""A study's runs as rows, cells and series: what may be averaged, and what may be compared.

A cell is one configuration with all its seeds. A series is the cells of one norm that differ in
batch size alone (or in what follows from it), and so make one line of a figure.
"""

import base64
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from gnexp.analysis import statistics
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
BASE = ("norm", "groups", "channels_per_group", "batch", "update_batch")

# A key that is in no list here tells cells apart. The lists repeat the policy of the keys (a test
# compares), because a study is read without the config package: also one of another machine.
_NOT_COMPARED = {
    *("study", "seeds", "out", "workers", "stack", "device", "execution", "together"),
    *("reference_batch", "checkpoint_minutes", "init_checksum"),
    *("gradients", "gradients_at", "covariance", "data.root", "data.title", "data.preview"),
}
# Keys with a column, or a rule, of their own.
_OTHERWISE_COMPARED = {
    *("norm.name", *BASE, "data.validation"),
    *("privacy.name", "privacy.epsilon"),  # both are in `epsilon`
}
NOT_PRIVATE = "none"
_RENAMED = {"model.name": "model", "data.name": "data"}
# Private runs have their own: these count only when they differ among the private or the others.
_WITH_PRIVACY = ("privacy.", "data.mean", "data.std")
# Across these a comparison of batch sizes means nothing, even where they follow the batch size.
_NEVER_ONE_SERIES = ("model", "data", "norm.", "model.", "data.", "init_")
# Trials may have a part of the budget of the runs that they choose a rate for.
_OF_A_BUDGET = ("epochs", "updates", "data.train_limit", "data.checksum")
_OF_A_NORM = ("norm.", "init_statistics")  # and so compared among runs of one norm alone
_NOT_TYPED = "default"  # what an option of the user's own norm is, if it was not typed
_CHECKSUMS = {"data.checksum": "images", "model.code": "model code", "norm.code": "norm code"}
_OF_A_MODEL = "model.code"  # and so compared among runs of one model alone


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

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each complete seed, last epoch, 0..1."""
        return [row["test_acc"] for row in self.of("complete") if row["test_acc"] is not None]

    @property
    def scored(self) -> list[float]:
        """Accuracies with each diverged seed at chance, as tests and answers use them."""
        return self.accuracies + [1 / self.classes] * len(self.of("diverged"))

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
    def correct(self) -> dict[int, "np.ndarray"]:
        """Return {seed: whether each test image is right}, in stored order, where it is recorded.

        bool (N,); the mean of one is its seed's test_acc. Complete seeds alone.
        """
        import numpy as np

        found = {}
        for row in self.of("complete"):
            if text := row.get("correct"):
                bits = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
                found[row["seed"]] = np.unpackbits(bits, count=self.test_images).astype(bool)
        return found

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


def is_trial(record: Record) -> bool:
    """Return whether a run is judged on images held out of its training set, not on test images."""
    return record.config.get("data", {}).get("validation") is not None


def run_rows(runs: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one row per run and seed: RUN_COLUMNS, `why`, and other config keys that vary.

    Where runs hold images out, `split` tells what test_acc and test_loss are of.
    """
    extras = varying(runs)
    rows = []
    for record in runs:
        key = cell_key(record, extras)
        for seed, state in record.statuses.items():
            numbers = record.numbers(seed) or _progress(record, seed)
            rows.append(
                {
                    "run": record.name,
                    **key,
                    "model": record.config.get("model", {}).get("name"),
                    "data": record.config.get("data", {}).get("name"),
                    "lr": record.config.get("lr"),
                    "seed": seed,
                    "status": state.get("status"),
                    **{c: numbers.get(c) for c in ("execution", "stack", *NUMBERS)},
                    "device": numbers.get("device") or record.provenance.get("device"),
                    **{c: numbers.get(c) for c in PRIVACY_COLUMNS},
                    "split": "validation" if is_trial(record) else "test",
                    "why": state.get("why", ""),
                }
            )
            rows[-1]["epochs"] = numbers.get("epochs")  # not the epochs asked for
    private = any(row["epsilon_spent"] is not None for row in rows)
    order = (*RUN_COLUMNS, *(e for e in extras if e not in RUN_COLUMNS))
    split = any(row["split"] == "validation" for row in rows)
    order += (*PRIVACY_COLUMNS * private, *("split",) * split, "why")
    return [{column: row[column] for column in order} for row in sorted(rows, key=row_order)]


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
        key = cell_key(records[0], extras)
        rows = [_seed_rows(record) for record in records]
        seeds = [row["seed"] for of_one in rows for row in of_one]
        if len(set(seeds)) == len(seeds):
            found.append(Cell(key, records[0], [r for of_one in rows for r in of_one], records))
            continue
        # They differ in something that is not known here: never average them.
        for record, of_one in zip(records, rows, strict=True):
            found.append(Cell({**key, "run": record.name}, record, of_one, [record]))
    return sorted(found, key=lambda cell: row_order(cell.key))


def _seed_rows(record: Record) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "status": state.get("status"), **record.numbers(seed)}
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
    alike: dict[tuple[str, ...], dict[str, list[Cell]]] = {}
    lines: dict[str, Series] = {}
    for cell in all_cells:
        shared = {c: v for c, v in cell.key.items() if c in splitting}
        shared = {"norm": cell.key["norm"], **shared}
        names = tuple(shared)
        if names not in alike:
            alike[names] = {}
            for other in all_cells:
                text = key_text([other.key.get(name) for name in names])
                alike[names].setdefault(text, []).append(other)
        like = alike[names][key_text([*shared.values()])]
        for update in _update_rules(cell, like):
            key = {**shared, "update": update}
            line = lines.setdefault(key_text(key), Series("", cell.key["norm"], key, []))
            line.cells.append(cell)
    result = [
        Series(line.label, line.norm, line.key, sorted(line.cells, key=lambda c: c.key["batch"]))
        for line in lines.values()
    ]
    for line in result:
        line.label = series_label(line.key, [other.key for other in result])
    return result


def series_label(key: Mapping[str, Any], keys: list[Mapping[str, Any]]) -> str:
    """Return a short name for people: the norm, its groups, and what tells the series apart."""
    texts = [chosen(c, key[c], [other.get(c) for other in keys]) for c in telling(key, keys)]
    return ", ".join([norm_label(key), *texts])


def telling(key: Mapping[str, Any], keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns, beyond norm and groups, that tell a series from those with these keys."""
    found = []
    for column in key:
        of_the_norm = column.startswith(_OF_A_NORM)  # which other norms need not have
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


def varying(runs: Sequence[Record]) -> list[str]:
    """Return the config keys, beyond BASE, that take several values among the runs.

    A norm's own keys count only when they differ within one norm, and those of private training
    within it. An option of the user's own norm that was not typed counts as such. The budget of
    trials counts only where there is nothing but trials.
    """
    judged = not all(map(is_trial, runs))
    values: dict[str, dict[str, set[str]]] = {}
    own: dict[str, dict[str, str]] = {}  # what was typed of each own norm, by its name
    for record in runs:
        if "_target_" in _norm_of(record.config):
            typed = own.setdefault(norm_name(record.config), {})
            options = (f"norm.{option}" for option in _norm_of(record.config))
            typed |= dict.fromkeys(options, _NOT_TYPED)
    for record in runs:
        compared = _compared(record)
        if "_target_" in _norm_of(record.config):
            compared = {**own[norm_name(record.config)], **compared}
            compared.pop("norm.name", None)
        for key, value in compared.items():
            if key in _OF_A_BUDGET and judged and is_trial(record):
                continue
            within = _within(key, record.config)
            values.setdefault(key, {}).setdefault(within, set()).add(key_text(value))
    return sorted(k for k, by in values.items() if any(len(seen) > 1 for seen in by.values()))


def _within(key: str, config: Mapping[str, Any]) -> str:
    """Return the kind of runs among which a key's values are compared, "" for all."""
    if key.startswith(_OF_A_NORM):
        return norm_name(config)
    if key == _OF_A_MODEL:
        return key_text(config.get("model"))
    if key.startswith(_WITH_PRIVACY):
        return "others" if epsilon(config) == NOT_PRIVATE else "private"
    return ""


def cell_key(record: Record, extras: Collection[str]) -> dict[str, Any]:
    """Return what identifies the record's cell: BASE, then the extra keys."""
    config, compared = record.config, _compared(record)
    if "_target_" in _norm_of(config):
        options = (e for e in extras if e.startswith("norm.") and e != "norm.code")
        compared = {**dict.fromkeys(options, _NOT_TYPED), **compared}
    batch = config.get("batch")
    return {
        "norm": norm_name(config),
        "groups": config.get("groups"),
        "channels_per_group": config.get("channels_per_group"),
        "batch": batch,
        "update_batch": config.get("update_batch") or batch,
        **{extra: compared.get(extra) for extra in extras},
    }


def norm_name(config: Mapping[str, Any]) -> str:
    """Return the norm's name; for an own norm the last part of its import path."""
    norm = _norm_of(config)
    target = norm.get("_target_")
    return str(target).rsplit(".", 1)[-1] if target else str(norm.get("name"))


def _norm_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    norm = config.get("norm") or {}
    return {"name": norm} if isinstance(norm, str) else norm


def norm_rank(norm: str) -> tuple[int, str]:
    """Return a sort key: the built-in norms in their usual order, then the others by name."""
    names = list(NORM_LABELS)
    return (names.index(norm), "") if norm in names else (len(names), norm)


def _compared(record: Record) -> dict[str, Any]:
    flat = {
        k: v for k, v in _flatten(record.config) if k not in _NOT_COMPARED | _OTHERWISE_COMPARED
    }
    checksum = record.result.get("data", {}).get("checksum")
    if checksum:
        flat["data.checksum"] = str(checksum)[:8]
    flat["epsilon"] = epsilon(record.config)
    if flat.get("updates"):
        flat.pop("epochs", None)  # which follow from the updates
    for part, digest in record.provenance.get("code", {}).items():
        flat[f"{part}.code"] = digest[:6]
    if flat.get("init_from"):
        flat["init_from"] = start_name(record.config)
    return {_RENAMED.get(key, key): value for key, value in flat.items()}


def start_name(config: Mapping[str, Any]) -> str:
    """Return what a run started from: the name of its run or file, and which weights these were."""
    path = PurePath(config["init_from"])
    path = path.parent if path.name == "checkpoint.pt" else path
    shown = "/".join(path.parts[-2:] if path.name.startswith("seed-") else path.parts[-1:])
    return f"{shown} ({str(config.get('init_checksum'))[:6]})"


def epsilon(config: Mapping[str, Any]) -> Any:
    """Return the epsilon of the config, NOT_PRIVATE without one."""
    privacy = config.get("privacy") or {}
    if privacy.get("name", "none") == "none":
        return NOT_PRIVATE
    asked = float(privacy["epsilon"])
    return int(asked) if asked.is_integer() else asked


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, key_text(value) if isinstance(value, (list, tuple)) else value


def _splitting(all_cells: list[Cell]) -> set[str]:
    """Keys that make separate series: those that vary where norm, groups and batch do not."""
    keys = dict.fromkeys(key for cell in all_cells for key in cell.key)
    split = {"groups", "channels_per_group"}
    split |= {k for k in keys if k == "data" or k.startswith(_NEVER_ONE_SERIES)}
    seen: dict[tuple[str, str], set[str]] = {}
    for cell in all_cells:
        base = key_text([cell.key[c] for c in BASE])
        for key in keys:
            seen.setdefault((key, base), set()).add(key_text(cell.key.get(key)))
    return split | {key for (key, _), values in seen.items() if len(values) > 1 and key not in BASE}


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

    rest = [c for c in row if c not in BASE and c not in (*NUMBERS, "why", "status", "run")]
    ordered = ["groups", "channels_per_group", *(c for c in rest if c != "seed")]
    ordered += ["update_batch", "batch", "seed", "run"]
    return (norm_rank(row["norm"]), *(number(row.get(column)) for column in ordered))


def key_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
