"""One optimizer update over several devices, each of which passes whole batches of its own.

The leader's step looks like any other; the followers are processes that hold a step of the same
models and do as they are told. Weights, momentum and buffers are the same on all devices after
every update, so those of the leader are the training's state.

Shapes: R replicas, U updates, N images of one update, D devices, C channels, H, W pixels.
"""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from gnexp.data.seeding import derived_seed
from gnexp.norms.all_reduce import synchronized
from gnexp.training.distributed.channel import Channel
from gnexp.training.precision import matrix_precision
from gnexp.training.stacked_step import StackedStep, Tick, no_tick


class DeviceStep(StackedStep):
    """The part of one device in every update: its share of the images, then the mean over devices.

    Running statistics (every buffer of floating point numbers) become the mean over devices too,
    after each update. That of a mean is the mean over all images; DistributedDataParallel takes
    those of its first device alone. Counters count what one device sees, the same on each.
    """

    def __init__(self, channel: Channel, models: Sequence[nn.Module], *args: Any, **options: Any):
        super().__init__(models, *args, **options)
        self.channel = channel
        self._running = [b for b in self.stack.buffers() if b.is_floating_point()]

    def update(self, x_NCHW: Tensor, y_NR: Tensor, rates_R: Sequence[float] | Tensor) -> None:
        """Update each replica's weights once, by the mean loss of all devices' images.

        x_NCHW, y_NR: this device's share, of the same size on each; see StackedStep.update.
        """
        self._before = [buffer.clone() for buffer in self._running]
        with synchronized(self.channel.group):
            super().update(x_NCHW, y_NR, rates_R)

    @torch.no_grad()
    def _descend(self, rates_R: Sequence[float] | Tensor) -> None:
        gradients = [p.grad for p in self.stack.held if p.grad is not None]
        # Of a buffer its change is averaged: one that stays as it is must not be rounded.
        changes = [now - old for now, old in zip(self._running, self._before, strict=True)]
        tensors = [*gradients, *changes]
        if tensors:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            distributed.all_reduce(flat, group=self.channel.group)
            parts = (flat / self.channel.count).split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))
        for buffer, old, change in zip(self._running, self._before, changes, strict=True):
            torch.add(old, change, out=buffer)
        super()._descend(rates_R)

    def run_share(
        self,
        x_RUNCHW: Tensor,
        y_RUN: Tensor,
        rates_UR: Sequence[Sequence[float]],
        tick: Tick = no_tick,
    ) -> None:
        """Make U updates with this device's share; the sums grow by those of all devices."""
        before = self.loss_sum_R.clone(), self.hits_R.clone()
        self.loss_sum_R.zero_()
        self.hits_R.zero_()
        self.run(x_RUNCHW, y_RUN, rates_UR, tick)
        sums_2R = torch.stack([self.loss_sum_R, self.hits_R.double()])
        distributed.all_reduce(sums_2R, group=self.channel.group)
        self.loss_sum_R.copy_(before[0] + sums_2R[0])
        self.hits_R.copy_(before[1] + sums_2R[1].long())


class ParallelStep:
    """Trains R replicas on D devices; see StackedStep, whose arguments it takes.

    An update's images are dealt in whole batches, as many to each device. A model that draws
    random numbers in a forward pass has a stream of its own on each device.
    """

    def __init__(
        self, channel: Channel, models: Sequence[nn.Module], *args: Any, **options: Any
    ) -> None:
        """Send the models to the followers. Raises ValueError for one that cannot be sent."""
        self.channel = channel
        sent = packed(models)
        self.step = DeviceStep(channel, models, *args, **options)
        self.replicas, self.device, self.dtype = len(models), self.step.device, self.step.dtype
        self.channels_last, self.execution = self.step.channels_last, self.step.execution
        self.batch, self.devices = self.step.batch, channel.count
        threads = torch.get_num_threads()
        self._tell("build", models=sent, args=args, options=options, threads=threads)

    def run(
        self,
        x_RUNCHW: Tensor,
        y_RUN: Tensor,
        rates_UR: Sequence[Sequence[float]],
        tick: Tick = no_tick,
    ) -> None:
        """Make U updates; `tick` hears after each how many images of all devices it used.

        N must be a multiple of batch * D. Raises DeviceLost when another process is gone.
        """
        shares_x = shares(x_RUNCHW, self.batch, self.devices)
        shares_y = shares(y_RUN, self.batch, self.devices)
        stream = _stream(self.device)
        allowed = torch.backends.cuda.matmul.allow_tf32
        rates = [[float(rate) for rate in rates_R] for rates_R in rates_UR]
        word = {"shape": shares_x[0].shape, "rates": rates, "stream": stream, "tf32": allowed}
        with self.channel.together():
            self.channel.broadcast("run", **word)
            for pieces in (shares_x, shares_y):
                here = torch.empty_like(pieces[0])
                distributed.scatter(here, pieces, src=0, group=self.channel.group)
            self.step.run_share(
                shares_x[0], shares_y[0], rates_UR, lambda images: tick(images * self.devices)
            )
            self.channel.barrier()

    def take_sums(self) -> list[tuple[float, int]]:
        """Return each replica's (sum of losses, number of hits) since the last call."""
        return self.step.take_sums()

    def model(self, replica: int) -> nn.Module:
        """Return the model of one replica with its current weights, unstacked."""
        return self.step.model(replica)

    def state(self, replica: int) -> dict[str, object]:
        """Return copies of one replica's tensors; see StackedStep.state."""
        return self.step.state(replica)

    def load(self, replica: int, state: dict[str, object]) -> None:
        """Continue one replica from `state`, on every device."""
        self.step.load(replica, state)
        kept = {key: state[key] for key in ("model", "momentum") if key in state}
        self._tell("load", replica=replica, state=packed(kept))

    def _tell(self, kind: str, **content: Any) -> None:
        with self.channel.together():
            self.channel.broadcast(kind, **content)
            self.channel.barrier()


def shares(tensor: Tensor, batch: int, devices: int) -> list[Tensor]:
    """Return each device's part of (R, U, N, ...) as (R, U, N / devices, ...), in whole batches.

    Example n is of batch n % (N / batch), here and there. Raises ValueError when N is not a
    multiple of batch * devices.
    """
    count = tensor.shape[2]
    if count % (batch * devices):
        raise ValueError(f"an update of {count} images is no multiple of {batch} x {devices}")
    parts = tensor.unflatten(2, (batch, -1)).chunk(devices, dim=3)
    return [part.flatten(2, 3).contiguous() for part in parts]


def packed(content: Any) -> bytes:
    """Return models, or a state, as they are sent. Raises ValueError for what cannot be pickled."""
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
    except Exception as error:
        raise ValueError(
            f"the model cannot be sent to other processes ({type(error).__name__}: {error}): its"
            " classes must be at the top of a module, and their instances picklable"
        ) from error
    return buffer.getvalue()


def _stream(device: torch.device) -> int:
    """Return a number that follows from the state of the generator which forward passes draw from.

    It goes with a checkpoint, so a resumed training has the same.
    """
    on_cuda = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if on_cuda else torch.get_rng_state()
    return int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:7], "big")


def serve(channel: Channel) -> None:
    """Execute the messages of rank 0 until it closes; raises when rank 0 is gone."""
    step: DeviceStep | None = None
    while True:
        kind, word = channel.receive()
        if kind == "close":
            return
        if kind == "build":
            step = None  # before another is made: two may not fit the device
            step = _built(channel, word)
        elif kind == "load":
            step.load(word["replica"], _unpacked(word["state"], channel.device))
        elif kind == "run":
            _run(channel, step, word)
        channel.barrier()


def _built(channel: Channel, word: dict[str, Any]) -> DeviceStep:
    torch.set_num_threads(word["threads"])
    models = _unpacked(word["models"], channel.device)
    return DeviceStep(channel, models, *word["args"], **word["options"])


def _unpacked(content: bytes, device: torch.device) -> Any:
    # The leader's own words, over a connection of this run: classes of models among them.
    return torch.load(io.BytesIO(content), map_location=device, weights_only=False)


def _run(channel: Channel, step: DeviceStep, word: dict[str, Any]) -> None:
    x_RUNCHW = torch.empty(word["shape"], dtype=step.dtype, device=channel.device)
    y_RUN = torch.empty(word["shape"][:3], dtype=torch.int64, device=channel.device)
    for here in (x_RUNCHW, y_RUN):
        distributed.scatter(here, None, src=0, group=channel.group)
    seed = derived_seed(word["stream"], "device", channel.rank)
    torch.manual_seed(seed)
    with matrix_precision("tf32" if word["tf32"] else "fp32"):
        step.run_share(x_RUNCHW, y_RUN, word["rates"])
