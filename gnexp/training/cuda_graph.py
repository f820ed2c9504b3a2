"""Many models on one CUDA device: an update of each, captured as parallel branches of one graph.

At small batches an update is hundreds of kernels that each fill a fraction of the device, and
starting them costs the host more than running them. A graph starts all of them at once, and models
that share nothing run beside each other; they need not even be alike.

Shapes: R replicas, U updates, N images of one update, C colours, H, W pixels.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from gnexp.training.stacked_step import StackedStep, Tick, no_tick

WARM_UP = 3  # passes before capturing: libraries choose kernels and allocate workspaces
TIMED = 20  # updates by which a candidate is judged
WORTH = 30.0  # a further candidate is tried when training takes so many times its trial


class GraphStep:
    """Trains the replicas of several stacks; nothing in an update waits for the host.

    branches: StackedSteps on one CUDA device, of one replica or more, each a branch of the graph;
    their models may differ. Replicas are numbered branch after branch. The graph is captured with
    the first block of images and replayed once per update. On a CPU, where nothing can be captured,
    the same update runs eagerly.
    """

    def __init__(self, branches: Sequence[StackedStep]) -> None:
        self.branches = list(branches)
        self.replicas = sum(branch.replicas for branch in branches)
        self.device, self.dtype = branches[0].device, branches[0].dtype
        self.channels_last = branches[0].channels_last
        self.execution = "cudagraph" if self.device.type == "cuda" else branches[0].execution
        self._place = [(b, r) for b in self.branches for r in range(b.replicas)]
        self._replay: Callable[[], None] | None = None

    def run(
        self,
        x_RUNCHW: Tensor,
        y_RUN: Tensor,
        rates_UR: Sequence[Sequence[float]],
        tick: Tick = no_tick,
    ) -> None:
        """Make U updates; `tick` hears after each is started how many images it uses."""
        count = x_RUNCHW.shape[1]
        rates_RU = torch.tensor(rates_UR, dtype=torch.float64).t()
        if self._replay is None:
            # What the graph reads: a block of images, their labels, rates, and a counter.
            self._x, self._y = x_RUNCHW.clone(), y_RUN.clone()
            self._rates = rates_RU.to(self.device)
            self._at = torch.zeros(1, device=self.device, dtype=torch.int64)
            self._replay = self._capture()
        self._x[:, :count].copy_(x_RUNCHW)
        self._y[:, :count].copy_(y_RUN)
        self._rates[:, :count].copy_(rates_RU)
        self._at.zero_()
        for _ in range(count):
            self._replay()
            tick(y_RUN.shape[0] * y_RUN.shape[2])

    def _update(self, streams: Sequence[torch.cuda.Stream] | None) -> None:
        """Update every branch with the images that the counter points at, and advance it."""
        first = 0
        for index, branch in enumerate(self.branches):
            mine = slice(first, first + branch.replicas)
            first = mine.stop
            if streams:
                streams[index].wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(streams[index] if streams else None):
                held = (tensor[mine] for tensor in (self._x, self._y, self._rates))
                x, y, rates = (tensor.index_select(1, self._at) for tensor in held)
                (x,), (y,) = branch.arrange(x, y)
                branch.update(x, y, rates[:, 0])
        for stream in streams or ():
            torch.cuda.current_stream().wait_stream(stream)
        self._at.add_(1)

    def _capture(self) -> Callable[[], None]:
        if self.device.type != "cuda":
            return lambda: self._update(None)
        streams = [torch.cuda.Stream(self.device) for _ in self.branches]
        changed = [*(t for branch in self.branches for t in branch.tensors()), self._at]
        before = [tensor.clone() for tensor in changed]
        beside = torch.cuda.Stream(self.device)
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._at.zero_()
                self._update(streams)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._update(streams)
        # The warm-up trained, and moved running statistics: as if it had never been.
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        return graph.replay

    def take_sums(self) -> list[tuple[float, int]]:
        """Return each replica's (sum of losses, number of hits) since the last call."""
        return [sums for branch in self.branches for sums in branch.take_sums()]

    def model(self, replica: int) -> nn.Module:
        """Return the model of one replica with its current weights, unstacked."""
        branch, place = self._place[replica]
        return branch.model(place)

    def state(self, replica: int) -> dict[str, object]:
        """Return copies of one replica's tensors; see StackedStep.state."""
        branch, place = self._place[replica]
        return branch.state(place)

    def load(self, replica: int, state: dict[str, object]) -> None:
        """Continue one replica from `state`."""
        branch, place = self._place[replica]
        branch.load(place, state)


def fastest(
    candidates: Iterable[Callable[[], GraphStep]], x_RUNCHW: Tensor, y_RUN: Tensor, updates: int
) -> GraphStep:
    """Return the step that updates fastest, of candidates made one after the other.

    Tried on these images with a rate of 0, then put back to what it was. Trials stop where the
    `updates` that are to be made would not pay for another one.
    """
    times: dict[GraphStep, float] = {}
    states: dict[GraphStep, list[dict[str, object]]] = {}
    for make in candidates:
        start = time.perf_counter()
        step = make()
        states[step] = [step.state(replica) for replica in range(step.replicas)]
        # All of them again, since a device that was idle is slower for whoever comes first.
        for each in states:
            taken = _time_of_update(each, x_RUNCHW, y_RUN)
            times[each] = min(taken, times.get(each, taken))
        if updates * min(times.values()) < WORTH * (time.perf_counter() - start):
            break
    best = min(times, key=times.get)
    best.take_sums()
    for replica, state in enumerate(states[best]):
        best.load(replica, state)
    return best


def _time_of_update(step: GraphStep, x_RUNCHW: Tensor, y_RUN: Tensor) -> float:
    rates = [[0.0] * step.replicas] * x_RUNCHW.shape[1]
    step.run(x_RUNCHW, y_RUN, rates)
    torch.cuda.synchronize(step.device)
    start, updates = time.perf_counter(), 0
    while updates < TIMED:
        step.run(x_RUNCHW, y_RUN, rates)
        updates += len(rates)
    torch.cuda.synchronize(step.device)
    return (time.perf_counter() - start) / updates
