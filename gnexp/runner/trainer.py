"""Train a replica group: build or restore the models, train, measure, store.

Each goes through: build (or continue from the checkpoint), gradients at the start, then epoch after
epoch metrics, gradients where due, checkpoint; at the end logits, then the result. Between any two
writes it may be killed: what was not checkpointed is done again, with the same numbers.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from gnexp.config.schema import TrainConfig, is_private, listed, tested_on
from gnexp.runner.build import dp_sgd
from gnexp.runner.build.data import device_images, train_settings
from gnexp.runner.build.initial_model import load_initial_model
from gnexp.runner.build.model import seeded_model
from gnexp.runner.build.step import outside_state, training_step
from gnexp.runner.checkpoint import State, load_states, save_states
from gnexp.runner.instruments import (
    ALWAYS,
    OTHER_SCORES,
    Trained,
    class_head,
    keeping_the_result,
    measure,
    own_gradients,
    right_images,
)
from gnexp.runner.loggers import follow
from gnexp.runner.prepared_run import PreparedRun
from gnexp.runner.provenance import version
from gnexp.runner.schedule import Replica, ReplicaGroup
from gnexp.store.run import Run
from gnexp.training.attributes import put_attributes, stored_attributes
from gnexp.training.evaluate import Scores, evaluate
from gnexp.training.loop import Epoch, ResumePoint, train_epochs
from gnexp.training.lr_schedule import peak_rate
from gnexp.training.precision import matrix_precision
from gnexp.training.ranks import Ranks

Emit = Callable[[dict[str, Any]], None]
TICK_S = 0.5  # how often a step reports its progress within an epoch


def progress_of(state: State) -> tuple[int, int]:
    """Return where a stored state stands: (epochs done, updates of the next one)."""
    return state.get("epoch", 0), state.get("updates", 0)


def stored_states(replicas: Sequence[Replica]) -> dict[str, State]:
    """Return the checkpointed states from which these can go on, by the replicas' names."""
    stored = {run.name: load_states(run.stored) for run in {r.run for r in replicas}}
    found = {r.name: stored[r.run.name].get(r.seed, {}) for r in replicas}
    ends = {r.name: r.config.epochs for r in replicas}
    return {
        name: state
        for name, state in found.items()
        if "momentum" in state or state.get("epoch") == ends[name]
    }


def _filled(group: ReplicaGroup) -> list[Replica]:
    """Return a training for every place of a group.

    A place that nobody trains at is filled by a copy of the first, at the rate it had: equal digits
    need equal spans of equal rates in the optimizer.
    """
    first = group.replicas[0]
    rates = [dataclasses.replace(first.config, lr=lr) for lr in group.spec.lrs]
    copies = [dataclasses.replace(first.run, config=config) for config in rates]
    filled = [dataclasses.replace(first, run=run) for run in copies]
    for place, replica in zip(group.places, group.replicas, strict=True):
        filled[place] = replica
    return filled


def _unseen(lost: list[str]) -> str:
    if not lost:
        return ""
    return (
        f"{', '.join(lost)} change{'s' * (len(lost) == 1)} in training, and no checkpoint holds it:"
        " if the run is interrupted, it goes on to other digits; keep it in a buffer or in a number"
    )


class GroupTrainer:
    """The trainings of one replica group that resume at the same point, to their ends.

    On several devices each rank has one; that of rank 0 alone measures and writes.
    """

    def __init__(
        self,
        step: ReplicaGroup,
        states: dict[str, State],
        low_memory: bool,
        emit: Emit,
        ranks: Ranks | None = None,
    ) -> None:
        """Build the models, or restore them from `states`, by the names of the trainings."""
        self.replicas, self.places, self.spec = step.replicas, step.places, step.spec
        self.states, self.emit = states, emit
        self.writes = ranks is None or ranks.rank == 0
        first = self.replicas[0]
        self.config, self.device = first.config, first.run.device
        self.epoch, self.updates = progress_of(states.get(first.name, {}))
        self.images = device_images(self.config.data, self.device)
        if self.images.summary != first.run.data:
            raise ValueError("its images were changed after this call had begun: call again")
        self.filled = _filled(step)
        self.models, starts = self._models()
        self.outside, lost = outside_state(self.config, self.models[0], self.images)
        self.step, note = training_step(
            [r.config for r in self.filled],
            self.models,
            self.images,
            low_memory,
            [replica.seed for replica in self.filled],
            ranks,
        )
        self.note = "; ".join(filter(None, (note, _unseen(lost))))
        self._announce(self.note, *self.replicas)
        self.secret = self.config.privacy.noise == "secret"
        self.going = dict(zip(self.places, self.replicas, strict=True))
        # What a seed gave so far goes with its checkpoint: a corrupt table is filled from there.
        self.rows: dict[int, dict[str, list[dict[str, Any]]]] = {
            place: {"metrics": [], "gradients": [], "initial_weights": starts[place]}
            for place in self.going
        }
        self.stored_at = time.monotonic()

    def _announce(self, note: str, *replicas: Replica) -> None:
        if note:
            names = ", ".join(replica.name for replica in replicas)
            self.emit({"kind": "note", "text": f"{names}: {note}"})

    def _models(self) -> tuple[list[nn.Module], list[list[dict[str, Any]]]]:
        """Return the models, and what new ones start from; the weights of others are to come."""
        if (self.epoch, self.updates) == (0, 0):
            started = [load_initial_model(r.config, self.images, r.seed) for r in self.filled]
            starts = [[record] if record else [] for _, record in started]
            return [model for model, _ in started], starts
        models = [seeded_model(r.config, r.run.data, r.seed) for r in self.filled]
        return [model.to(self.device) for model in models], [[] for _ in models]

    def run(self) -> None:
        """Train, measure and store epoch after epoch; then the results."""
        if resumes := (self.epoch, self.updates) != (0, 0):
            for place, replica in enumerate(self.filled):
                self.step.load(place, self.states[replica.name])
                stored = self.states[replica.name].get("attributes", {})
                put_attributes(self.models[place], stored)
        if self.writes:
            self._fill_tables(resumes)
        resumed = None
        if self.updates:
            state = self.states[self.replicas[0].name]
            resumed = ResumePoint(self.updates, state["time_s"], state["random_states"])
        epochs = train_epochs(
            self.step,
            self.images,
            train_settings(self.config),
            [replica.seed for replica in self.filled],
            [replica.config.lr for replica in self.filled],
            self.epoch + 1,
            self._ticker(),
            resumed,
            self._pausing if self.writes else None,
        )
        last: list[Epoch | None] = [None] * len(self.filled)
        for last in epochs:
            trained = self.going
            self.going = {p: r for p, r in trained.items() if not last[p].diverged}
            if self.writes:
                self._store_epoch(trained, last)
            if not self.going:
                return
        if self.writes:
            for place, replica in self.going.items():
                self._finish(place, replica, last[place])

    def _fill_tables(self, resumes: bool) -> None:
        """Put the tables to what they held where training goes on."""
        for place, replica in self.going.items():
            if not resumes:
                replica.run.stored.drop_seed(replica.seed)
                self._measure(place, replica, 0)
                continue
            run, state = replica.run.stored, self.states[replica.name]
            self.rows[place] = state["rows"]
            refill(run, self.rows[place])
            if self.secret and self.epoch < self.config.epochs:
                self.note = (
                    f"noise and sampling were drawn anew from epoch {self.epoch + 1}, update"
                    f" {self.updates + 1} on: privacy.noise=secret stores none of what it drew"
                )
                self._announce(self.note, replica)

    def _pausing(self, epoch: int, now: Callable[[], ResumePoint]) -> None:
        if time.monotonic() - self.stored_at >= 60 * self.config.checkpoint_minutes:
            self._checkpoint(epoch - 1, now())

    def _store_epoch(self, trained: dict[int, Replica], results: Sequence[Epoch]) -> None:
        epoch = results[0].epoch
        for place, replica in trained.items():
            self.rows[place]["metrics"].append(_row(results[place], replica.seed))
        # What was shown must not be drawn anew after a kill: epsilon would count it once.
        if stored_first := self.secret and not results[0].diverged:
            self._checkpoint(epoch)
        for place, replica in trained.items():
            row = self.rows[place]["metrics"][-1]
            replica.run.stored.add_rows("metrics.csv", [row])
            shown = {"run": replica.run.name, "on": tested_on(replica.config), **row}
            self.emit({"kind": "epoch", **shown})
            if place in self.going and epoch in (
                max(1, self.config.epochs // 2),
                self.config.epochs,
            ):
                self._measure(place, replica, epoch)
            follow(replica.run.stored, replica.seed, replica.config.logger)
            if place not in self.going:
                self._finish(place, replica, results[place])
        if not stored_first:
            self._checkpoint(epoch)

    def _checkpoint(self, epoch: int, pause: ResumePoint | None = None) -> None:
        more: dict[str, Any] = {"epoch": epoch, **self.spec.entry()}
        if pause:
            more |= dataclasses.asdict(pause)
        for run in {replica.run.name: replica.run for replica in self.going.values()}.values():
            states = {}
            for place, replica in self.going.items():
                if replica.run is run:
                    state = {**self.step.state(place), **more, "rows": self.rows[place]}
                    if kept := stored_attributes(self.models[place], self.outside):
                        state["attributes"] = kept
                    if not pause and epoch == self.config.epochs:
                        del state["momentum"]
                    states[replica.seed] = state
            save_states(run.stored, states)
        self.stored_at = time.monotonic()

    def _measure(self, place: int, replica: Replica, epoch: int) -> None:
        if replica.config.gradients == 0:
            return
        model, why, rows = self.step.model(place), {}, []
        trained = epoch == replica.config.epochs
        with keeping_the_result("gradients", why) if trained else contextlib.nullcontext():
            rows = own_gradients(replica.config, model, self.images, replica.seed, epoch)
        if why:  # goes with the checkpoint, as the result is yet to come
            self.rows[place]["unmeasured"] = [why]
        self.rows[place]["gradients"] += rows
        replica.run.stored.add_rows("gradients.csv", rows)

    def _finish(self, place: int, replica: Replica, last: Epoch | None) -> None:
        """Store a training's end; `last` is None when it was killed just before that."""
        run, config, model = replica.run.stored, replica.config, self.step.model(place)
        if last is None:
            with matrix_precision(config.precision):
                scores = evaluate(model, self.images, precision=config.precision)
        else:
            scores = Scores(last.test_acc, last.test_loss, last.logits_NK)
        run.add_logits(replica.seed, scores.logits_NK.cpu().numpy())
        diverged = last is not None and last.diverged
        why = f"the loss was not finite in epoch {last.epoch}" if diverged else ""
        status = "diverged" if diverged else "complete"
        numbers = {"status": status, **self._numbers(place, config)}
        if diverged:
            numbers["why"] = why
        else:
            trained = Trained(run, config, model, self.images, replica.seed, scores)
            numbers |= right_images(scores, self.images, numbers["test_acc"])
            numbers |= self._measured(place, replica, trained)
        head = result_head(replica.run) | {"parameters": replica.run.parameters}
        with run.writing():  # the classes are of all seeds so far
            classes = class_head(run, self.images)
            run.add_result(replica.seed, numbers, **head, **classes)
        self._announce(classes.get("classes", {}).get("note", ""), replica)
        run.set_status(replica.seed, status, why)
        run.drop_traceback(replica.seed)

    def _measured(self, place: int, replica: Replica, trained: Trained) -> dict[str, Any]:
        """Return what is measured at the end; where an instrument fails, and why."""
        unmeasured = dict(*self.rows[place].get("unmeasured", ()))
        numbers: dict[str, Any] = dict.fromkeys(["ece", *OTHER_SCORES])
        for what in (*ALWAYS, *listed(replica.config.measure)):
            with keeping_the_result(what, unmeasured):
                numbers |= measure(what, trained, replica.config.shift)
        for what, reason in unmeasured.items():
            self._announce(f"{what} could not be measured: {reason}", replica)
        return numbers | ({"unmeasured": unmeasured} if unmeasured else {})

    def _numbers(self, place: int, config: TrainConfig) -> dict[str, Any]:
        """Return the final numbers of a seed; the last epoch counts, none is selected."""
        rows = self.rows[place]["metrics"]
        kept = ("test_acc", "test_loss", "train_loss", "train_acc", "examples_seen")
        used = train_settings(config).examples_per_epoch(len(self.images.x_train))
        rate = peak_rate(config.lr, config.lr_rule, config.update_batch)
        numbers = {
            **{key: rows[-1][key] for key in kept},
            "test_acc_median5": statistics.median(row["test_acc"] for row in rows[-5:]),
            "epochs": rows[-1]["epoch"],
            "train_time_s": sum(row["time_s"] for row in rows),
            # Rate x decay x updates: only the linear rule keeps it over batch sizes.
            "decay_per_epoch": rate * config.weight_decay * used / config.update_batch,
            "device": self.device.type,
            "execution": self.step.execution,
            "stack": self.step.replicas,
            "layout": "channels_last" if self.step.channels_last else "contiguous",
        }
        if is_private(config):
            updates = numbers["examples_seen"] // config.update_batch
            numbers |= dp_sgd.record(config, len(self.images.x_train), updates)
            by = "torch.func" if self.step.mapped else "hooks"
            numbers["per_example_gradients"] = by
        if config.devices > 1:
            numbers["devices"] = config.devices
        if self.note:
            numbers["note"] = self.note
        if start := self.rows[place].get("initial_weights"):
            numbers["initial_weights"] = start[0]
        return numbers

    def _ticker(self) -> Callable[[int], None]:
        """Return a tick that reports the images of each replica, at most every TICK_S."""
        since = {"images": 0, "time": time.monotonic()}
        keys = [replica.key for replica in self.replicas]

        def tick(images: int) -> None:
            since["images"] += images
            now = time.monotonic()
            if now - since["time"] >= TICK_S:
                each = since["images"] / self.step.replicas
                self.emit({"kind": "tick", "replicas": keys, "examples": each})
                since.update(images=0, time=now)

        return tick


def refill(run: Run, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Put the rows that a checkpoint holds into the run's tables, where they may be lacking."""
    run.add_rows("metrics.csv", rows["metrics"])
    if rows["gradients"]:
        run.add_rows("gradients.csv", rows["gradients"])


def _row(epoch: Epoch, seed: int) -> dict[str, Any]:
    keys = ("epoch", "examples_seen", "lr", "train_loss", "train_acc")
    keys += ("test_loss", "test_acc", "time_s")
    return {"seed": seed, **{key: getattr(epoch, key) for key in keys}}


def result_head(run: PreparedRun) -> dict[str, Any]:
    """Return the entries of result.json for the whole run."""
    about = run.data
    return {
        "run": run.name,
        "gnexp": version(),
        "config": run.stored.config(),
        **run.network,
        "data": {
            "title": about.title,
            "checksum": about.checksum,
            "train": about.train_size,
            "test": about.test_size,
            "classes": list(about.classes),
            **({"passed_over": about.passed_over} if about.passed_over else {}),
        },
    }
