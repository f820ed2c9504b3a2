"""DP-SGD: updates from clipped per-example gradients and noise, by Opacus.

Neighbouring data sets differ in one image, added to or removed from those that are trained on: see
`dp_budget`. An update is
(sum of g_i * min(1, clip / |g_i|) + noise) / expected batch over the images i that Poisson sampling
drew, with noise of standard deviation noise_multiplier * clip in every parameter; momentum and
weight decay come after it. Source: Abadi et al. 2016, arXiv:1607.00133.

Seeded noise lets a run be repeated and resumed. The guarantee is then that of the algorithm: it
does not hold against somebody who knows the seed. Secret noise is from the system's entropy, and
nothing that is stored gives it again. Neither hides what the rounding of floating point numbers may
give away, as the secure mode of Opacus does.

Shapes: U updates, N images of one update, C colours, H, W pixels, K classes.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gnexp.data.seeding import derived_seed, secret_normal
from gnexp.norms.module_state import copied, put_state
from gnexp.norms.trials import first_line
from gnexp.training.lr_schedule import rate_factors
from gnexp.training.stacked_step import Tick, no_tick


class PrivateStep:
    """Trains one model with DP-SGD; see the module for what an update is.

    batch: the most images of one pass, which changes only rounding, as no image of a model that
    takes part here depends on the others. expected_batch: images of an update on average. The noise
    of update k comes from (seed, k) alone, or without a seed from the system's entropy. A layer's
    `rate_factor` multiplies the rate of its own parameters.
    """

    replicas = 1
    execution = "eager"
    channels_last = False

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        expected_batch: int,
        momentum: float,
        weight_decay: float,
        *,
        clip: float,
        noise_multiplier: float,
        seed: int | None,
        mapped: bool = False,
    ) -> None:
        """Train `model` itself, on its device. noise_multiplier: over `clip`; 0 is not private.

        mapped: take gradients by torch.func instead of by Opacus' hooks; see
            `why_no_private_gradient`.
        """
        self.batch, self.expected_batch, self.seed = batch, expected_batch, seed
        self._model = model.train()
        self.mapped = mapped
        self._gradients = _mapped if mapped else _hooked(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.device, self.dtype = self._parameters[0].device, self._parameters[0].dtype
        self.optimizer = (_SecretlyNoised if seed is None else DPOptimizer)(
            torch.optim.SGD(
                _groups_of_a_rate(model),
                lr=0.0,
                momentum=momentum,
                weight_decay=weight_decay,
                nesterov=momentum > 0,
            ),
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=expected_batch,
            generator=torch.Generator(self.device) if seed is not None else None,
        )
        # From zero velocity the first update is what it is without one.
        self._velocities = [torch.zeros_like(p) for p in self._parameters] if momentum else []
        for parameter, velocity in zip(self._parameters, self._velocities):
            self.optimizer.state[parameter]["momentum_buffer"] = velocity
        self.updates = 0
        self._loss_sum = torch.zeros((), device=self.device, dtype=torch.float64)
        self._hits = torch.zeros((), device=self.device, dtype=torch.float64)
        self._images = self._expected = 0

    def run(
        self,
        x_1UNCHW: Tensor,
        y_1UN: Tensor,
        rates_U1: Sequence[Sequence[float]],
        tick: Tick = no_tick,
    ) -> None:
        """Make U updates; `tick` hears after each how many images it expects."""
        for x_NCHW, y_N, (rate,) in zip(x_1UNCHW[0], y_1UN[0], rates_U1, strict=True):
            self.update(x_NCHW, y_N, rate)
            tick(self.expected_batch)

    def update(self, x_NCHW: Tensor, y_N: Tensor, rate: float) -> None:
        """Update the weights once, by the N images that were drawn; none is as good a draw."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        if self.seed is not None:
            noise_seed = derived_seed(self.seed, "privacy noise", self.updates)
            self.optimizer.generator.manual_seed(noise_seed)
        firsts = range(0, max(1, len(y_N)), self.batch)
        for first in firsts:
            part = slice(first, first + self.batch)
            self._backward(x_NCHW[part], y_N[part])
            # All passes but the last only clip and add to the sum.
            self.optimizer.signal_skip_step(do_skip=first != firsts[-1])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self._images += len(y_N)
        self._expected += self.expected_batch

    def _backward(self, x_NCHW: Tensor, y_N: Tensor) -> None:
        """Leave every image's own gradient with the parameters."""
        if not len(y_N):  # not every layer takes an empty batch
            for parameter in self._parameters:
                parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
            return
        logits_NK = self._gradients(self._model, x_NCHW, y_N)
        self._loss_sum += F.cross_entropy(logits_NK, y_N, reduction="sum")
        self._hits += (logits_NK.argmax(dim=1) == y_N).sum()

    def take_sums(self) -> list[tuple[float, float]]:
        """Return (sum of losses, hits) since the last call, scaled to the expected images.

        The numbers of images that were drawn vary, and whoever asks divides by the expected one.
        They are computed on the training images, and no noise covers them.
        """
        scale = self._expected / max(1, self._images)
        sums = [(self._loss_sum.item() * scale, self._hits.item() * scale)]
        self._loss_sum.zero_()
        self._hits.zero_()
        self._images = self._expected = 0
        return sums

    def model(self, replica: int) -> nn.Module:
        """Return the model with the weights of this moment."""
        return self._model

    def state(self, replica: int) -> dict[str, object]:
        """Return copies of what is needed to go on, at any update; see StackedStep.state.

        "sums" hold (sum of losses, hits, images drawn, images expected); "noised", the updates
        made since the training began, says whose noise is next. How many images were drawn is
        secret where the draws are: the sums are then scaled to the expected ones.
        """
        sums = [self._loss_sum.item(), self._hits.item(), self._images, self._expected]
        if self.seed is None:
            scale = self._expected / max(1, self._images)
            sums = [sums[0] * scale, sums[1] * scale, self._expected, self._expected]
        return {
            "model": {k: v.detach().clone() for k, v in self._model.state_dict().items()},
            "momentum": [velocity.clone() for velocity in self._velocities],
            "sums": sums,
            "noised": self.updates,
        }

    def load(self, replica: int, state: dict[str, object]) -> None:
        """Continue from `state`; without "momentum" in it, from rest."""
        put_state(self._model, state["model"])
        stored = state.get("momentum", self._velocities)
        for mine, theirs in zip(self._velocities, stored, strict=True):
            mine.copy_(theirs)
        loss_sum, hits, self._images, self._expected = state["sums"]
        self._loss_sum.fill_(loss_sum)
        self._hits.fill_(hits)
        self.updates = state["noised"]


def _groups_of_a_rate(model: nn.Module) -> list[dict[str, object]]:
    """Return the trained parameters as the optimizer takes them, one group per rate factor."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter, factor in zip(model.parameters(), rate_factors(model), strict=True):
        if parameter.requires_grad:
            groups.setdefault(factor, []).append(parameter)
    return [{"params": group, "rate_factor": factor} for factor, group in groups.items()]


class _SecretlyNoised(DPOptimizer):
    """Opacus' optimizer, with noise from the system's entropy."""

    def add_noise(self) -> None:
        multiplier, self.noise_multiplier = self.noise_multiplier, 0.0
        super().add_noise()  # none: only what else it does with the sums
        self.noise_multiplier = multiplier
        for parameter in self.params:
            noise = secret_normal(parameter.grad).mul_(multiplier * self.max_grad_norm)
            parameter.grad += noise


_SAME = 1e-6  # float64, relative to a gradient's largest value


Gradients = Callable[[nn.Module, Tensor, Tensor], Tensor]  # see `_mapped`


def _hooked(model: nn.Module) -> Gradients:
    """Return what leaves each image's gradient with the parameters, by hooks on each layer."""
    hooked = GradSampleModule(model, loss_reduction="sum")

    def gradients(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> Tensor:
        with warnings.catch_warnings():  # images have no gradient, as the first layer's hook says
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            logits_NK = hooked(x_NCHW)
            F.cross_entropy(logits_NK, y_N, reduction="sum").backward()
        return logits_NK.detach()

    return gradients


def _mapped(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> Tensor:
    """Leave each image's own gradient with the parameters, by torch.func; return the logits."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(trained: dict[str, Tensor], x_CHW: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits_1K = functional_call(model, trained, (x_CHW[None],))
        return F.cross_entropy(logits_1K, y[None], reduction="sum"), logits_1K[0]

    of_each = vmap(grad(loss, has_aux=True), in_dims=(None, 0, 0), randomness="different")
    found, logits_NK = of_each(trained, x_NCHW, y_N)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad_sample = found[name]
    return logits_NK.detach()


def why_no_private_gradient(
    model: nn.Module, x_NCHW: Tensor, y_N: Tensor, mapped: bool = False
) -> str | None:
    """Return why one way does not give the gradients of each of these images; None if it does.

    mapped: by torch.func, which takes operations in place, rather than by Opacus' hooks. Found by
    trying, on a copy in float64 that drops nothing out: against the gradients of the images one by
    one. The model must not mix the images of a batch. Buffers that a pass in train mode changes are
    refused too: they would hold what no noise covers.
    """
    if errors := [] if mapped else GradSampleModule.validate(model):
        return str(errors[0]).strip()
    trial = copied(model).double().train()
    for module in trial.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    x_NCHW = x_NCHW.double()
    try:
        with torch.random.fork_rng(devices=[]):
            before = {name: buffer.clone() for name, buffer in trial.named_buffers()}
            one_by_one = [
                _gradient(trial, x_NCHW[n : n + 1], y_N[n : n + 1]) for n in range(len(y_N))
            ]
            for name, buffer in trial.named_buffers():
                if not torch.equal(buffer, before[name]):
                    return f"a forward pass changes its buffer {name}"
            (_mapped if mapped else _hooked(trial))(trial, x_NCHW, y_N)
        largest = max(gradient.abs().max() for gradients in one_by_one for gradient in gradients)
        for (name, parameter), gradients in zip(trial.named_parameters(), zip(*one_by_one)):
            if parameter.requires_grad and not _agree(parameter, torch.stack(gradients), largest):
                return f"its gradients of {name} are not those of the images one by one"
    except Exception as error:
        return first_line(error)
    return None


def _agree(parameter: nn.Parameter, expected: Tensor, largest: Tensor) -> bool:
    """Return True when a parameter's per-example gradients are as expected, up to rounding.

    largest: of all the parameters' gradients, since one that ought to be zero is only rounding.
    """
    found = getattr(parameter, "grad_sample", None)
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    scale = torch.maximum(expected.abs().max(), _SAME * largest)
    return bool((found - expected).abs().max() <= _SAME * scale)


def _gradient(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(x_NCHW), y_N, reduction="sum")
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    found = iter(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))
    return [next(found) if p.requires_grad else torch.zeros_like(p) for p in parameters]
