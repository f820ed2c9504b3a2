"""R models of one architecture as a single module: every layer works on all of them at once.

Stacking walks the tree of modules and replaces each by the form that handles R replicas, chosen by
its type: convolutions become grouped, linear layers batched, norms take their stacked form from the
table of norms, and any other module goes through torch.func. The model is written once, for one.

Shapes: N examples, R replicas, C channels of one replica, K classes, H and W pixels. Between the
layers of a stack, axis 1 holds the channels of replica 0, then those of replica 1, and so on.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from gnexp.models.blocks import (
    BasicBlock,
    Bottleneck,
    PaddedShortcut,
    PlainBlock,
    PreActivationBlock,
)
from gnexp.models.weight_standardization import StandardizedConv2d
from gnexp.norms.base import ReplicatedNorm
from gnexp.norms.module_state import copied
from gnexp.norms.registry import STACKED_FORMS
from gnexp.norms.stacked import join
from gnexp.norms.trials import first_line
from gnexp.training.attributes import attributes

Stacker = Callable[[Sequence[Any]], nn.Module]


class StackedLinear(nn.Module):
    """R linear layers side by side: (N, R * I) -> (N, R * O)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.replicas = len(layers)
        self.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
        self.bias = None
        if layers[0].bias is not None:
            self.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))

    def forward(self, x_NI: Tensor) -> Tensor:
        if self.replicas == 1:
            return F.linear(x_NI, self.weight, self.bias)
        x_RNI = x_NI.unflatten(1, (self.replicas, -1)).transpose(0, 1)
        weight_RIO = self.weight.unflatten(0, (self.replicas, -1)).transpose(1, 2)
        if self.bias is None:
            y_RNO = torch.bmm(x_RNI, weight_RIO)
        else:
            bias_R1O = self.bias.view(self.replicas, 1, -1)
            y_RNO = torch.baddbmm(bias_R1O, x_RNI, weight_RIO)
        return y_RNO.transpose(0, 1).flatten(1)


class StackedPaddedShortcut(nn.Module):
    """The padded shortcut of R replicas: zero channels go behind each replica's own."""

    def __init__(self, layers: Sequence[PaddedShortcut]) -> None:
        super().__init__()
        self.one, self.replicas = layers[0], len(layers)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.replicas == 1:
            return self.one(x_NCHW)
        count, stride = self.replicas, self.one.stride
        x = x_NCHW[:, :, ::stride, ::stride].unflatten(1, (count, -1))
        extra = self.one.out_channels - self.one.in_channels
        return F.pad(x, (0, 0, 0, 0, 0, extra)).flatten(1, 2)


def _stack_conv(layers: Sequence[nn.Conv2d]) -> nn.Module:
    one, count = layers[0], len(layers)
    if one.padding_mode != "zeros":
        return MappedModule(layers)
    joined = type(one)(
        count * one.in_channels,
        count * one.out_channels,
        one.kernel_size,
        stride=one.stride,
        padding=one.padding,
        dilation=one.dilation,
        groups=count * one.groups,
        bias=one.bias is not None,
    )
    return join(joined, layers)


class MappedModule(nn.Module):
    """R replicas of any module, mapped over their tensors by torch.func.

    The module must return a tensor of (N, C, ...) for one, and must neither draw random numbers
    nor decide by the values of tensors; `stack_refusal` finds out. Buffers that a forward pass
    updates, in place or by rebinding, follow for each replica. `chunks` batches within N examples
    (see ChunkedBatchNorm2d) are mapped too, where no buffer would have to follow them in order.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.replicas = len(layers)
        # One alone stays the user's own object, with whatever it keeps beside its tensors.
        self.held = copied(layers[0]) if self.replicas > 1 else layers[0]
        if not any(True for _ in self.held.buffers()):
            self.chunks = 1
        if self.replicas > 1:
            for name, module in self.held.named_modules():
                _hold_together(module, [layer.get_submodule(name) for layer in layers])

    def forward(self, x: Tensor) -> Tensor:
        run = self._run_one if self.replicas == 1 else self._run_all
        chunks = getattr(self, "chunks", 1)
        if chunks == 1 or not self.training:
            return run(x)
        x_NK = x.unflatten(0, (-1, chunks))
        return vmap(run, in_dims=1, out_dims=1)(x_NK).flatten(0, 1)

    def _run_one(self, x: Tensor) -> Tensor:
        before = {name: dict(module._buffers) for name, module in self.held.named_modules()}
        y = self.held(x)
        # A captured graph knows buffers by where they lie: one that was rebound moves back.
        with torch.no_grad():
            for name, module in self.held.named_modules():
                for key, buffer in before[name].items():
                    if module._buffers.get(key) is not buffer and buffer is not None:
                        module._buffers[key] = buffer.copy_(module._buffers[key])
        return y

    def _run_all(self, x: Tensor) -> Tensor:
        parameters = dict(self.held.named_parameters())
        # Copies: a layer inside may save its buffers for the backward pass.
        buffers = {name: buffer.clone() for name, buffer in self.held.named_buffers()}

        def one(parameters: dict, buffers: dict, x: Tensor) -> tuple[Tensor, dict]:
            tensors = {**parameters, **buffers}
            y = functional_call(self.held, tensors, (x,))
            return y, {name: tensors[name] for name in buffers}

        x_NR = x.unflatten(1, (self.replicas, -1))
        y_NR, after = vmap(one, in_dims=(0, 0, 1), out_dims=(1, 0))(parameters, buffers, x_NR)
        with torch.no_grad():
            for name, buffer in self.held.named_buffers():
                buffer.copy_(after[name])
        return y_NR.flatten(1, 2)


def _hold_together(target: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Replace the tensors that `target` itself holds by those of all layers, (R, ...)."""
    for name, parameter in target._parameters.items():
        if parameter is not None:
            together = torch.stack([getattr(layer, name).detach() for layer in layers])
            target._parameters[name] = nn.Parameter(together, parameter.requires_grad)
    for name, buffer in target._buffers.items():
        if buffer is not None:
            target._buffers[name] = torch.stack([getattr(layer, name) for layer in layers])


# By exact type, since a subclass may compute something else. Of these, a stack of R is as below.
_FORMS: dict[type[nn.Module], Stacker] = {
    nn.Conv2d: _stack_conv,
    StandardizedConv2d: _stack_conv,  # it works on each filter alone
    nn.Linear: StackedLinear,
    PaddedShortcut: StackedPaddedShortcut,
    **STACKED_FORMS,
}
# Works on each channel or value alone, so R replicas are one call on all their channels.
_PER_CHANNEL = (nn.ReLU, nn.Identity, nn.Flatten, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d)
_CONTAINERS = (nn.Sequential, BasicBlock, Bottleneck, PlainBlock, PreActivationBlock)


def _stack_modules(layers: Sequence[nn.Module]) -> nn.Module:
    """Return the form of one module of the tree that handles all replicas."""
    one = layers[0]
    kind = type(one)
    if kind in _CONTAINERS:
        joined = copy.copy(one)
        joined._modules = {
            name: _stack_modules([layer._modules[name] for layer in layers])
            for name in one._modules
        }
        return joined
    if kind in _FORMS:
        return _FORMS[kind](layers)
    if kind in _PER_CHANNEL and getattr(one, "start_dim", 1) == 1:
        return one
    return MappedModule(layers)


def _may_mix(module: nn.Module) -> bool:
    """Return whether a module of a stack may let an example see the rest of its batch."""
    if isinstance(module, ReplicatedNorm):
        return "n" in module.pools
    return isinstance(module, nn.BatchNorm2d | MappedModule)


class Stack(nn.Module):
    """R models of one architecture as one module: (N, R, C, H, W) -> logits (N, R, K).

    A replica's outputs and gradients do not depend on its neighbours, and its tensors go by the
    names they have in the model alone. The models are copied from, and stay as they are; only a
    single one lends the stack what is not of the table.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.replicas = len(models)
        self.net = _stack_modules(models)
        self._ndims = {name: tensor.ndim for name, tensor in models[0].state_dict().items()}
        self._parameter_ndims = [parameter.ndim for parameter in models[0].parameters()]
        # Walking the tree of modules would be a part of every update.
        self.held = list(self.net.parameters())
        for ours, its in zip(self.held, models[0].parameters(), strict=True):
            ours.requires_grad_(its.requires_grad)
        self._may_mix = list(filter(_may_mix, self.net.modules()))

    def forward(self, x_NRCHW: Tensor) -> Tensor:
        return self.net(x_NRCHW.flatten(1, 2)).unflatten(1, (self.replicas, -1))

    @property
    def mapped(self) -> bool:
        """Return True when torch.func runs a part of the model."""
        return any(isinstance(module, MappedModule) for module in self.net.modules())

    @property
    def takes_chunks(self) -> bool:
        """Return True when batches with statistics of their own can share a forward pass."""
        return all(hasattr(layer, "chunks") for layer in self._may_mix)

    def set_chunks(self, chunks: int) -> None:
        """Let a forward pass in train mode hold `chunks` batches: example n is of n % chunks."""
        for layer in self._may_mix:
            layer.chunks = chunks

    def state(self, replica: int) -> dict[str, Tensor]:
        """Return views of one replica's tensors, under the names of the unstacked model."""
        tensors = self.net.state_dict().values()
        return {
            name: self._part(tensor, ndim, replica, replica + 1)[0]
            for (name, ndim), tensor in zip(self._ndims.items(), tensors, strict=True)
        }

    def load(self, replica: int, state: dict[str, Tensor]) -> None:
        """Copy one replica's tensors from the state dict of the unstacked model."""
        with torch.no_grad():
            for name, view in self.state(replica).items():
                view.copy_(state[name])

    def parts(self, tensors: Sequence[Tensor | None], first: int, end: int) -> list[Tensor | None]:
        """Return views (end - first, ...) of tensors that are shaped as the parameters are.

        They hold the parts of replicas `first` to `end` - 1. None stays None, as the gradient of a
        parameter that took no part in a pass.
        """
        pairs = zip(tensors, self._parameter_ndims, strict=True)
        return [
            None if tensor is None else self._part(tensor, ndim, first, end)
            for tensor, ndim in pairs
        ]

    def gradients(self) -> list[Tensor | None]:
        """Return the gradients of the last backward passes, in the order of the parameters."""
        return [parameter.grad for parameter in self.held]

    def _part(self, tensor: Tensor, ndim: int, first: int, end: int) -> Tensor:
        """Return the view (end - first, ...) of a stacked tensor; unstacked it has `ndim` axes."""
        if tensor.ndim == ndim + 1:  # mapped by torch.func
            return tensor[first:end]
        if ndim == 0:  # one for all, as a stacked BN's counter
            return tensor.expand(end - first)
        return tensor.unflatten(0, (self.replicas, -1))[first:end]


def why_not_stackable(
    models: Sequence[nn.Module], shape: Sequence[int], chunks: int = 1
) -> str | None:
    """Return why these models cannot share a step, or None if they can; found by trying.

    shape: (C, H, W) of an image. chunks: of the pass that is tried; see `Stack.set_chunks`. Stock
    layers are known to stack. Whatever goes through torch.func passes twice in train mode, forward
    and backward, in float64, and must give what each model gives alone.
    """
    tensors = models[0].state_dict(keep_vars=True).values()
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        return "two of its layers share a parameter"
    if any(module._forward_hooks or module._forward_pre_hooks for module in models[0].modules()):
        return "a forward hook watches one of its layers"
    try:
        models_apart = [copied(model).double().train() for model in models[:2]]
        stack = Stack(models_apart).train()
        if chunks > 1 and not stack.takes_chunks:
            return "its buffers follow the batches one by one"
        if not stack.mapped:
            return None
        draw = torch.Generator().manual_seed(0)
        before = _plain_numbers(models_apart[0])
        for _ in range(2):
            x = torch.randn(
                3 * chunks, len(models_apart), *shape, generator=draw, dtype=torch.float64
            )
            difference = _difference(stack, models_apart, x, chunks)
            if not difference < _SAME:
                return f"stacked, it gives other numbers (off by {difference:.0e})"
        after = _plain_numbers(models_apart[0])
        if changed := [key for key in before if after.get(key) != before[key]]:
            return f"{changed[0]} changes in training, and is no buffer"
        for name, value in attributes(stack).items():
            if isinstance(value, Tensor):
                name = name.rpartition(".")[2]
                return f"{name} is a tensor, but neither a parameter nor a buffer"
    except Exception as error:
        return f"torch.func refuses it: {first_line(error)}"
    return None


def _plain_numbers(model: nn.Module) -> dict[str, float]:
    """Return the attributes of a model's layers that are numbers of Python, by name."""
    held = attributes(model).items()
    return {name: value for name, value in held if isinstance(value, int | float)}


def draws_random_numbers(model: nn.Module, shape: Sequence[int]) -> bool:
    """Return whether a forward pass in train mode takes numbers from the global generator."""
    trial = copied(model).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        trial(torch.zeros(2, *shape))
        return not torch.equal(before, torch.get_rng_state())


_SAME = 1e-6  # float64, relative to the largest value


def _difference(
    stack: Stack, models_apart: Sequence[nn.Module], x_NRCHW: Tensor, chunks: int
) -> float:
    """Return the largest relative difference of logits, gradients and buffers after one pass."""
    stack.set_chunks(chunks)
    stack.zero_grad()
    logits_NRK = stack(x_NRCHW)
    logits_NRK.square().sum().backward()
    largest = 0.0
    for replica, model in enumerate(models_apart):
        model.zero_grad()
        logits = []
        for chunk in range(chunks):
            logits.append(model(x_NRCHW[chunk::chunks, replica]))
            logits[-1].square().sum().backward()
        pairs = [(logits_NRK[:, replica], torch.stack(logits, dim=1).flatten(0, 1))]
        gradients = stack.parts(stack.gradients(), replica, replica + 1)
        pairs += [
            (g[0], p.grad)
            for g, p in zip(gradients, model.parameters(), strict=True)
            if p.grad is not None
        ]
        # Of a parameter before a norm that ignores it, the gradient is 0 but for rounding.
        rounding = _SAME * max(theirs.abs().max().item() for _, theirs in pairs)
        state = stack.state(replica)
        pairs += [(state[name].double(), b.double()) for name, b in model.named_buffers()]
        for ours, theirs in pairs:
            scale = theirs.abs().max().clamp_min(max(rounding, 1e-12))
            largest = max(largest, ((ours - theirs).abs().max() / scale).item())
    return largest
