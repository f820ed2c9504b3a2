"""Group trainings that share a step, and distribute the groups over processes."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from gnexp.config.keys import value_of
from gnexp.config.schema import KEYS, TrainConfig
from gnexp.runner.prepared_run import PreparedRun
from gnexp.store.status import image_cost

# Measured (ResNet-20, one thread of an AMD EPYC, PyTorch 2.14.1, see results/LOG.md): at batch 1
# ten replicas in a step train 2.0 times as many images per second as one, at batch 16 there is no
# gain left, and at 64 five replicas are a sixth slower than one: they no longer fit a cache.
CPU_IMAGES, CPU_REPLICAS = 80, 10
# One H100, ResNet-20 at batch 1: a replica's update takes 0.27 ms among 5, 0.21 among 20.
CUDA_REPLICAS = 20

# Trainings in one CUDA graph share the images they count, and nothing else: norm, model, rate and
# decay may differ. Stacked on a CPU they share the architecture too, and only rates may differ.
_SHARED_IN_A_GRAPH = [name for name, key in KEYS.items() if key.stack == "same"]
_SHARED_IN_A_STACK = [name for name, key in KEYS.items() if key.stack != "any"]


@dataclass(frozen=True)
class Replica:
    """One seed of one run."""

    run: PreparedRun
    seed: int

    @property
    def config(self) -> TrainConfig:
        return self.run.config

    @property
    def key(self) -> tuple[str, int]:
        return self.run.name, self.seed

    @property
    def name(self) -> str:
        """Its name among those that share a step."""
        return f"{self.run.name}/{self.seed}"


@dataclass(frozen=True)
class ReplicaGroupSpec:
    """The members of a replica group, which decide the last digits of each beside its config.

    members: their names, in the order of their places; lrs: their rates; threads: of the process.
    """

    members: tuple[str, ...]
    lrs: tuple[float, ...]
    threads: int

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> "ReplicaGroupSpec":
        """Return what `entry` holds under "step", "lrs" and "threads"."""
        return cls(tuple(entry["step"]), tuple(entry["lrs"]), int(entry["threads"]))

    def entry(self) -> dict[str, Any]:
        """Return it in plain lists and numbers, as `read` takes it."""
        return {"step": list(self.members), "lrs": list(self.lrs), "threads": self.threads}


@dataclass(frozen=True)
class ReplicaGroup:
    """Trainings that share a step, each with its slot among the members of the group.

    Places without a training are filled by a copy that nobody records: so a step that was
    interrupted goes on in its old shape when some of its trainings have ended.
    """

    replicas: tuple[Replica, ...]
    places: tuple[int, ...]
    spec: ReplicaGroupSpec

    @property
    def size(self) -> int:
        return len(self.spec.members)

    @property
    def cost(self) -> float:
        """Return the relative cost in arbitrary units; needs resolved configs."""
        config = self.replicas[0].config
        return self.size * config.epochs * image_cost(config.update_batch or config.batch)

    def part(self, keep: Callable[[Replica], bool]) -> "ReplicaGroup | None":
        """Return the group with only those trainings, each at its slot; None without any."""
        pairs = zip(self.places, self.replicas, strict=True)
        kept = [(place, replica) for place, replica in pairs if keep(replica)]
        if not kept:
            return None
        places, replicas = zip(*kept, strict=True)
        return ReplicaGroup(replicas, places, self.spec)


def group_of(replicas: list[Replica], threads: int) -> ReplicaGroup:
    """Return the replica group of exactly these trainings."""
    names = tuple(replica.name for replica in replicas)
    rates = tuple(replica.config.lr for replica in replicas)
    return ReplicaGroup(
        tuple(replicas), tuple(range(len(replicas))), ReplicaGroupSpec(names, rates, threads)
    )


def max_stack_size(device_type: str, update_batch: int) -> int:
    """Return the largest number of replicas in a group on a device ("cpu" or "cuda")."""
    if device_type == "cuda":
        return CUDA_REPLICAS
    return max(1, min(CPU_REPLICAS, CPU_IMAGES // update_batch))


def layout(
    replicas: list[Replica],
    spec: dict[str, ReplicaGroupSpec],
    unstackable: set[str],
    workers: int,
    threads: int = 1,
) -> list[ReplicaGroup]:
    """Distribute trainings over replica groups, the longest first.

    spec: of those that were planned or begun in an earlier call, by name. unstackable: runs whose
    models cannot share a step. With several workers, steps are halved until each worker has about
    as much to do. threads: of one process that trains a step which is new.
    """
    device_type = replicas[0].run.device.type
    by_spec: dict[ReplicaGroupSpec, list[Replica]] = {}
    by_kind: dict[str, list[Replica]] = {}
    for replica in replicas:
        if replica.name in spec:
            by_spec.setdefault(spec[replica.name], []).append(replica)
        else:
            kind = replica.name if replica.run.name in unstackable else _kind(replica.run)
            by_kind.setdefault(kind, []).append(replica)
    steps = [
        ReplicaGroup(tuple(some), tuple(known.members.index(r.name) for r in some), known)
        for known, some in by_spec.items()
    ]
    fresh = []
    for some in by_kind.values():
        # Equal rates side by side share an optimizer step.
        some = sorted(some, key=lambda replica: (replica.config.lr, replica.key))
        first = some[0].config
        most = first.stack or max_stack_size(device_type, first.update_batch // first.devices)
        fresh += _slices(some, most, threads)
    everything = sum(step.cost for step in (*steps, *fresh))
    fresh = _halved(fresh, everything / workers, threads)
    return sorted([*steps, *fresh], key=lambda step: -step.cost)


def _halved(steps: list[ReplicaGroup], share: float, threads: int) -> list[ReplicaGroup]:
    """Return the steps with the longest halved, until none is much longer than a worker's share."""
    steps = list(steps)
    while steps:
        step = max(steps, key=lambda step: step.cost)
        # A share and a half: the halves of a step that is a little too large would be as slow.
        if step.size == 1 or step.cost <= 1.5 * share:
            break
        steps.remove(step)
        steps += _slices(list(step.replicas), ceil(step.size / 2), threads)
    return steps


def _slices(replicas: list[Replica], most: int, threads: int) -> list[ReplicaGroup]:
    count = ceil(len(replicas) / most)
    edges = [round(i * len(replicas) / count) for i in range(count + 1)]
    return [group_of(replicas[a:b], threads) for a, b in itertools.pairwise(edges)]


def _kind(run: PreparedRun) -> str:
    in_a_graph = run.device.type == "cuda" and run.config.devices == 1
    shared = _SHARED_IN_A_GRAPH if in_a_graph else _SHARED_IN_A_STACK
    return json.dumps([value_of(run.config, name) for name in shared], sort_keys=True)
