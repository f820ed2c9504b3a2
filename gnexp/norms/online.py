"""Online normalization: by averages over the examples before, with a controlled backward pass.

Shapes: N examples, in the order in which they count; R replicas, C channels, H and W pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gnexp.norms.base import StandardizingNorm
from gnexp.norms.layers import DEFAULT_EPS

# The weights that the past keeps in averages, of forward passes and in the control of backward ones
ALPHA_F, ALPHA_B = 0.999, 0.99


class OnlineNorm2d(StandardizingNorm):
    """Normalize each channel by averages over all examples before this one, of this batch too:

        x_t -> (x_t - mu) / sqrt(var + eps), then, with the mean m and variance v of x_t's pixels,
        var <- alpha_f var + (1 - alpha_f) v + alpha_f (1 - alpha_f) (m - mu)^2,
        mu <- alpha_f mu + (1 - alpha_f) m

    The affine follows, and layer scaling: division by sqrt(mean of squares + eps) of an example.
    Backward is not the slope of this, which would take all of the past: a control with memory
    alpha_b makes gradients orthogonal to 1 and to the output on average, as batch norm's are. Its
    state, `control_y` and `control_1`, moves with every backward pass. Evaluation uses the averages
    as they are. The order of affine and layer scaling is that of the authors' code (Cerebras).
    Source: Chiley et al. 2019, arXiv:1905.05894.
    """

    pools = "nhw"
    reads_state = True

    def __init__(
        self,
        num_channels: int,
        *,
        eps: float = DEFAULT_EPS,
        alpha_f: float = ALPHA_F,
        alpha_b: float = ALPHA_B,
    ) -> None:
        super().__init__(num_channels, eps=eps)
        for key, value, default in (("alpha_f", alpha_f, ALPHA_F), ("alpha_b", alpha_b, ALPHA_B)):
            if not 0 <= value < 1:
                raise ValueError(f"{key}={value} must lie in [0, 1); the default is {default}")
        self.alpha_f, self.alpha_b = alpha_f, alpha_b
        starts = {"running_mean": 0.0, "running_var": 1.0, "control_y": 0.0, "control_1": 0.0}
        for key, value in starts.items():
            self.register_buffer(key, torch.full((num_channels,), value))

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        if self.training:
            x_NCHW = x_NRCHW.flatten(1, 2)
            mean_NC, scale_NC = self._follow(x_NCHW)
            controls = self.control_y, self.control_1
            y = _Controlled.apply(x_NCHW, mean_NC, scale_NC, *controls, self.alpha_b)
            y = y.unflatten(1, (self.replicas, -1))
        else:
            scale_C = (self.running_var + self.eps).rsqrt()
            y = (x_NRCHW - self.spread(self.running_mean)) * self.spread(scale_C)
        z = self.affine(y)
        return z * (z.square().mean(dim=(2, 3, 4), keepdim=True) + self.eps).rsqrt()

    @torch.no_grad()
    def _follow(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and 1 / sigma (N, C) before each example, and move the averages past all."""
        mean_NC = x_NCHW.mean(dim=(2, 3))
        # torch.var_mean is 20 times slower on a CPU.
        var_NC = (x_NCHW - mean_NC[:, :, None, None]).square_().mean(dim=(2, 3))
        keep, new = self.alpha_f, 1 - self.alpha_f
        kept_NC = torch.full_like(mean_NC, keep)
        before_NC, after_C = _recurrence(kept_NC, new * mean_NC, self.running_mean)
        self.running_mean.copy_(after_C)
        seen_NC = new * (var_NC + keep * (mean_NC - before_NC).square())
        var_before_NC, var_after_C = _recurrence(kept_NC, seen_NC, self.running_var)
        self.running_var.copy_(var_after_C)
        return before_NC, (var_before_NC + self.eps).rsqrt()


class _Controlled(torch.autograd.Function):
    """y = (x - mean) * scale, and backwards what keeps gradients orthogonal to 1 and y over time.

    With means over pixels, from example to example, and k = 1 - alpha_b:

        g = dy - k e_y y,        e_y <- e_y + mean(g y)
        dx = scale g - k e_1,    e_1 <- e_1 + mean(dx)
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        mean_NC: Tensor,
        scale_NC: Tensor,
        control_y: Tensor,
        control_1: Tensor,
        alpha: float,
    ) -> Tensor:
        y_NCHW = (x_NCHW - mean_NC[:, :, None, None]) * scale_NC[:, :, None, None]
        ctx.save_for_backward(y_NCHW, scale_NC)
        # Not saved: backward passes move them, and each starts where the last one ended.
        ctx.controls, ctx.alpha = (control_y, control_1), alpha
        return y_NCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        y_NCHW, scale_NC = ctx.saved_tensors
        (control_y, control_1), k = ctx.controls, 1 - ctx.alpha
        pixels = (2, 3)
        keep_NC = 1 - k * y_NCHW.square().mean(pixels)
        e_y_NC, last_C = _recurrence(keep_NC, (dy_NCHW * y_NCHW).mean(pixels), control_y)
        control_y.copy_(last_C)
        g_NCHW = torch.addcmul(dy_NCHW, y_NCHW, e_y_NC[:, :, None, None], value=-k)
        dx_NCHW = g_NCHW * scale_NC[:, :, None, None]
        kept_NC = torch.full_like(scale_NC, ctx.alpha)
        e_1_NC, last_C = _recurrence(kept_NC, dx_NCHW.mean(pixels), control_1)
        control_1.copy_(last_C)
        return dx_NCHW - k * e_1_NC[:, :, None, None], None, None, None, None, None


def _recurrence(keep_NC: Tensor, add_NC: Tensor, start_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return (s_0 .. s_{N-1} (N, C), s_N (C,)) of s_n = keep_n s_{n-1} + add_n from s_0 = start.

    By doubling: what n steps make of s, keep s + add, is composed with the n steps before, so that
    it takes log2 N rounds. Nothing is divided, so `keep` may be zero or negative.
    """
    step = 1
    while step < len(keep_NC):
        add = torch.addcmul(add_NC[step:], keep_NC[step:], add_NC[:-step])
        add_NC = torch.cat([add_NC[:step], add])
        keep_NC = torch.cat([keep_NC[:step], keep_NC[step:] * keep_NC[:-step]])
        step *= 2
    after_NC = torch.addcmul(add_NC, keep_NC, start_C)
    return torch.cat([start_C[None], after_NC[:-1]]), after_NC[-1]
