"""A step of trainings from their configs to their folders: training, measuring, storing joined.

A replica goes through: build (or continue from the checkpoint), gradients at the start, then epoch
after epoch metrics, gradients where due, checkpoint; at the end logits, then the result.
"""

import contextlib
import dataclasses
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gnexp import build
from gnexp.checkpoints import State, load_states, save_states
from gnexp.config import TrainConfig, as_dict
from gnexp.data.loader import DeviceImages, draw_batches
from gnexp.measure.gradients import choose_draws, measure_gradients
from gnexp.provenance import provenance, version
from gnexp.schedule import Replica, Step, step_of
from gnexp.study.store import Run
from gnexp.training.evaluate import evaluate
from gnexp.training.loop import Epoch, train_epochs
from gnexp.training.precision import matrix_precision
from gnexp.training.rates import peak_rate

Emit = Callable[[dict[str, Any]], None]
Outcomes = dict[tuple[str, int], dict[str, str]]  # of (run, seed): its "status" and "why"
TICK_S = 0.5  # how often a step reports its progress within an epoch


@dataclass(frozen=True)
class Task:
    """What a worker process needs to know: trainings that share a step, and their call."""

    step: Step
    command: str
    started: str
    frugal: bool = False


def run_task(task: Task, emit: Emit) -> Outcomes:
    """Train what the step holds and return what became of each.

    An exception is recorded with its reason and a traceback in the folder. Where several share the
    step, its halves are tried first: so one that fails, or too little memory for all, harms none
    of the others. Two processes never train the same seed of a run: the second leaves it alone.
    """
    outcomes: Outcomes = {}
    with contextlib.ExitStack() as locks:
        free = []
        for place, replica in zip(task.step.places, task.step.replicas, strict=True):
            try:
                if locks.enter_context(Run.create(replica.folder).lock(replica.seed)):
                    free.append((place, replica))
                else:
                    why = f"another process is at work on this run (seed {replica.seed})"
                    outcomes[replica.run, replica.seed] = {"status": "busy", "why": why}
            except OSError as error:  # a full disk, a folder that is gone
                outcomes[replica.run, replica.seed] = {"status": "failed", "why": str(error)}
        if free:
            places, replicas = zip(*free, strict=True)
            step = dataclasses.replace(task.step, places=places, replicas=replicas)
            outcomes |= _guarded(dataclasses.replace(task, step=step), emit)
    return outcomes


def _guarded(task: Task, emit: Emit) -> Outcomes:
    """Train what is unfinished of the step; on an exception its halves, at last one by one."""
    try:
        pairs = zip(task.step.places, task.step.replicas, strict=True)
        todo = [(place, r) for place, r in pairs if r.seed not in Run(r.folder).finished_seeds()]
        if todo:
            places, replicas = zip(*todo, strict=True)
            step = dataclasses.replace(task.step, places=places, replicas=replicas)
            task = dataclasses.replace(task, step=step)
            _prepare(task)
            _train(task, emit)
        return {(r.run, r.seed): Run(r.folder).statuses()[r.seed] for r in task.step.replicas}
    except Exception as error:
        replicas = list(task.step.replicas)
        if len(replicas) > 1:
            middle = len(replicas) // 2
            halves = [replicas[:middle], replicas[middle:]]
            emit({"kind": "note", "text": f"{_names(replicas)}: {_reason(error)}; trying halves"})
            parts = [dataclasses.replace(task, step=step_of(half)) for half in halves]
            return {k: v for part in parts for k, v in _guarded(part, emit).items()}
        if _out_of_memory(error) and not task.frugal:
            return _guarded(dataclasses.replace(task, frugal=True), emit)
        return {(replicas[0].run, replicas[0].seed): _record_failure(replicas[0], error)}


def _record_failure(replica: Replica, error: Exception) -> dict[str, str]:
    """Write down that a training failed, as far as its folder can still be written."""
    run, why = Run(replica.folder), _reason(error)
    status = "infeasible" if _out_of_memory(error) else "failed"
    try:
        if status == "infeasible":
            run.add_result(replica.seed, {"status": status}, **_head(replica.config, run))
        else:
            run.write_traceback(replica.seed, traceback.format_exc())
        run.set_status(replica.seed, status, why)
    except (ValueError, OSError) as worse:  # a corrupt file of the store, a full disk
        return {"status": "failed", "why": f"{why}; and it cannot be recorded: {worse}"}
    return {"status": status, "why": why}


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError | OSError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _names(replicas: Sequence[Replica]) -> str:
    return ", ".join(replica.name for replica in replicas)


def mark_died(step: Step, why: str) -> None:
    """Record that the process of a step ended while it trained, unless another took it over."""
    for replica in step.replicas:
        run = Run(replica.folder)
        if not run.folder.is_dir():
            continue
        with run.lock(replica.seed) as alone:
            if alone and run.statuses().get(replica.seed, {}).get("status") == "running":
                run.set_status(replica.seed, "failed", why)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: on CUDA, in Python, or in PyTorch's allocator on a CPU."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator: " in str(error)


def _prepare(task: Task) -> None:
    """Write what the run folders hold before any number: configs, provenance, statuses."""
    for replica in task.step.replicas:
        run = Run(replica.folder)
        device = build.pick_device(replica.config.device)
        run.write_config(as_dict(replica.config))
        run.write_provenance(provenance(device, task.command, task.started))
        run.set_status(replica.seed, "running")


def _train(task: Task, emit: Emit) -> None:
    """Train a step; those of its trainings that were interrupted at another epoch go in turn."""
    states = _stored_states(task.step.replicas)
    by_epoch: dict[int, list[int]] = {}
    for index, replica in enumerate(task.step.replicas):
        by_epoch.setdefault(states.get(replica.name, {}).get("epoch", 0), []).append(index)
    for epoch, indices in sorted(by_epoch.items()):
        part = dataclasses.replace(
            task.step,
            replicas=tuple(task.step.replicas[i] for i in indices),
            places=tuple(task.step.places[i] for i in indices),
        )
        _Training(dataclasses.replace(task, step=part), states, epoch, emit).run()


def _stored_states(replicas: Sequence[Replica]) -> dict[str, State]:
    """Return the checkpointed states from which these can go on, by the replicas' names."""
    stored = {folder: load_states(Run(folder)) for folder in {r.folder for r in replicas}}
    found = {r.name: stored[r.folder].get(r.seed, {}) for r in replicas}
    ends = {r.name: r.config.epochs for r in replicas}
    return {
        name: state
        for name, state in found.items()
        if "momentum" in state or state.get("epoch") == ends[name]
    }


class _Training:
    """One step that trains replicas which are all at the same epoch, to their ends."""

    def __init__(self, task: Task, states: dict[str, State], epoch: int, emit: Emit) -> None:
        self.replicas, self.places = task.step.replicas, task.step.places
        self.states, self.epoch, self.emit = states, epoch, emit
        self.config = self.replicas[0].config
        self.device = build.pick_device(self.config.device)
        self.images = build.device_images(self.config.data, self.device)
        # A place that nobody trains at is filled by a copy of the first, at the rate it had: equal
        # digits need equal spans of equal rates in the optimizer.
        first = self.replicas[0]
        lrs = states.get(first.name, {}).get("lrs", [])
        if len(lrs) != task.step.size:  # a new step
            lrs = [self.config.lr] * task.step.size
        self.filled = [
            dataclasses.replace(first, config=dataclasses.replace(self.config, lr=lr)) for lr in lrs
        ]
        for place, replica in zip(self.places, self.replicas, strict=True):
            self.filled[place] = replica
        classes = len(self.images.classes)
        models = [build.seeded_model(r.config, classes, r.seed) for r in self.filled]
        self.step, self.note = build.training_step(
            [r.config for r in self.filled],
            [model.to(self.device) for model in models],
            self.images,
            task.frugal,
        )
        if self.note:
            emit({"kind": "note", "text": f"{_names(self.replicas)}: {self.note}"})
        self.company = [
            r.name if place in self.places else "" for place, r in enumerate(self.filled)
        ]

    def run(self) -> None:
        """Train, measure and store epoch after epoch; then the results."""
        going = dict(zip(self.places, self.replicas, strict=True))
        for place, replica in enumerate(self.filled):
            if self.epoch:
                self.step.load(place, self.states[replica.name])
        if self.epoch == 0:
            for place, replica in going.items():
                Run(replica.folder).drop_seed(replica.seed)
                self._measure(place, replica, 0)
        epochs = train_epochs(
            self.step,
            self.images,
            build.recipe(self.config),
            [replica.seed for replica in self.filled],
            [replica.config.lr for replica in self.filled],
            self.epoch + 1,
            self._ticker(),
        )
        last: dict[int, Epoch] = {}
        for results in epochs:
            for place, replica in list(going.items()):
                last[place] = results[place]
                if self._epoch_done(place, replica, results[place]):
                    self._finish(place, replica, results[place])
                    del going[place]
            self._checkpoint(going, results[0].epoch)
            if not going:
                return
        for place, replica in going.items():
            self._finish(place, replica, last.get(place))

    def _epoch_done(self, place: int, replica: Replica, epoch: Epoch) -> bool:
        """Store what an epoch gave one replica; return whether it diverged."""
        row = _row(epoch, replica.seed)
        Run(replica.folder).add_metrics([row])
        self.emit({"kind": "epoch", "run": replica.run, **row})
        if epoch.diverged:
            return True
        if epoch.epoch in (max(1, self.config.epochs // 2), self.config.epochs):
            self._measure(place, replica, epoch.epoch)
        return False

    def _checkpoint(self, going: dict[int, Replica], epoch: int) -> None:
        """Store the weights of all that go on; their momentum too, as long as it is needed."""
        lrs = [replica.config.lr for replica in self.filled]
        for folder in sorted({replica.folder for replica in going.values()}):
            states = {}
            for place, replica in going.items():
                if replica.folder == folder:
                    state = {"epoch": epoch, "step": self.company, "lrs": lrs}
                    state |= self.step.state(place)
                    if epoch == self.config.epochs:
                        del state["momentum"]
                    states[replica.seed] = state
            save_states(Run(folder), states)

    def _measure(self, place: int, replica: Replica, epoch: int) -> None:
        if replica.config.gradients != 0:
            model = self.step.model(place)
            _measure(Run(replica.folder), replica.config, model, self.images, replica.seed, epoch)

    def _finish(self, place: int, replica: Replica, last: Epoch | None) -> None:
        """Store a training's end; `last` is None when it was killed just before that."""
        run, config = Run(replica.folder), replica.config
        model = self.step.model(place)
        if last is None:
            with matrix_precision(config.precision):
                logits = evaluate(model, self.images, precision=config.precision).logits_NK
        else:
            logits = last.logits_NK
        run.add_logits(replica.seed, logits.cpu().numpy())
        diverged = last is not None and last.diverged
        status = "diverged" if diverged else "complete"
        numbers = _numbers(run, config, replica.seed, status)
        numbers |= {
            "device": self.device.type,
            "execution": self.step.execution,
            "stack": self.step.replicas,
            "layout": "channels_last" if self.step.channels_last else "contiguous",
        }
        if self.note:
            numbers["note"] = self.note
        run.add_result(replica.seed, numbers, **_head(config, run, model))
        why = f"the loss was not finite in epoch {last.epoch}" if diverged else ""
        run.set_status(replica.seed, status, why)

    def _ticker(self) -> Callable[[int], None]:
        """Return a tick that reports the images of each replica, at most every TICK_S."""
        since = {"images": 0, "time": time.monotonic()}
        keys = [(replica.run, replica.seed) for replica in self.replicas]

        def tick(images: int) -> None:
            since["images"] += images
            now = time.monotonic()
            if now - since["time"] >= TICK_S:
                each = since["images"] / self.step.replicas
                self.emit({"kind": "tick", "replicas": keys, "examples": each})
                since.update(images=0, time=now)

        return tick


def _measure(
    run: Run, config: TrainConfig, model: nn.Module, images: DeviceImages, seed: int, epoch: int
) -> None:
    """Measure the gradient variance at this point at the run's own batch size, and store it."""
    draws = config.gradients
    if draws is None:
        used = build.recipe(config).examples_per_epoch(len(images.x_train))
        draws = choose_draws(config.epochs * used // config.batch)
    if draws:
        at = (config.batch,)
        augment = config.data.augment if config.gradients_augment else "none"
        rows = gradients_at(
            model, images, at, lambda batch: draws, seed, epoch, augment, config.precision
        )
        run.add_gradients(rows)


def gradients_at(
    model: nn.Module,
    images: DeviceImages,
    batches: tuple[int, ...],
    draws_of: Callable[[int], int],
    seed: int,
    epoch: int,
    augment: str,
    precision: str,
) -> list[dict[str, Any]]:
    """Return rows of gradients.csv: the gradient noise at the model's weights per batch size.

    The precision is that of training, except that bf16 runs are measured in float32: rounding
    would count as noise.
    """
    rows = []
    for batch in batches:
        k = draws_of(batch)
        purpose = f"gradients-{epoch}-{batch}"
        drawn = draw_batches(images, batch, k, seed, purpose, augment)
        with matrix_precision(precision):
            measured = measure_gradients(model, drawn, k, batch)
        for row in measured:
            rows.append({"seed": seed, "epoch": epoch, "at_batch": batch, **row})
    return rows


def _row(epoch: Epoch, seed: int) -> dict[str, Any]:
    keys = ("epoch", "examples_seen", "lr", "train_loss", "train_acc")
    keys += ("test_loss", "test_acc", "time_s")
    return {"seed": seed, **{key: getattr(epoch, key) for key in keys}}


def _numbers(run: Run, config: TrainConfig, seed: int, status: str) -> dict[str, Any]:
    """Return the final numbers of a seed; the last epoch counts, none is selected."""
    rows = [row for row in run.metrics() if row["seed"] == seed]
    last = rows[-1]
    return {
        "status": status,
        "test_acc": last["test_acc"],
        "test_acc_median5": statistics.median(row["test_acc"] for row in rows[-5:]),
        "test_loss": last["test_loss"],
        "train_loss": last["train_loss"],
        "train_acc": last["train_acc"],
        "epochs": last["epoch"],
        "examples_seen": last["examples_seen"],
        "train_time_s": sum(row["time_s"] for row in rows),
        "decay_per_epoch": _decay_per_epoch(config, last["examples_seen"] / last["epoch"]),
    }


def _decay_per_epoch(config: TrainConfig, used: float) -> float:
    """Return peak rate x weight decay x updates: only the linear rule keeps it over batch sizes."""
    peak = peak_rate(config.lr, config.lr_rule, config.update_batch)
    return peak * config.weight_decay * used / config.update_batch


def _head(config: TrainConfig, run: Run, model: nn.Module | None = None) -> dict[str, Any]:
    """Return what result.json says of the run as a whole."""
    images = build.images_of(config.data)
    head: dict[str, Any] = {
        "run": run.name,
        "gnexp": version(),
        "config": run.config(),
        "groups_per_layer": build.groups_per_layer(config),
        "data": {
            "title": images.title,
            "checksum": images.checksum,
            "train": len(images.x_train),
            "test": len(images.x_test),
            "classes": list(images.classes),
        },
    }
    if model is not None:
        head["parameters"] = sum(p.numel() for p in model.parameters())
    return head
