"""Batch norm over the examples of all processes that train one model together.

Shapes: N examples of this process, C channels, H and W pixels.
"""

import torch
from torch import Tensor

from gnexp.norms.all_reduce import all_sum, group_size
from gnexp.norms.batch_norms import RunningNorm


class SynchronizedBatchNorm2d(RunningNorm):
    """Batch norm over the batches of all devices together; on one device it is batch norm.

    The function of nn.SyncBatchNorm, which PyTorch has on CUDA alone. The devices are those of
    `all_reduce.synchronized`.
    Source: Zhang et al. 2018, arXiv:1803.08904 (as "synchronized cross-GPU batch normalization").
    """

    pools = "nhw"

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return self.by_running_statistics(x_NCHW)
        self.num_batches_tracked.add_(1)
        if group_size() == 1:
            return self.by_batch_statistics(x_NCHW)
        return self._by_statistics_of_all(x_NCHW)

    def _by_statistics_of_all(self, x_NCHW: Tensor) -> Tensor:
        x = x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32))
        values = x.new_full((1,), x.shape[0] * x.shape[2] * x.shape[3])
        # One exchange for both: the processes may hold different numbers of examples.
        sums = all_sum(torch.cat([x.sum(dim=(0, 2, 3)), values]))
        mean_C, values = sums[:-1] / sums[-1], sums[-1].detach()
        centered = x - mean_C[:, None, None]
        # From the deviations, in a second exchange: E[x^2] - E[x]^2 would cancel.
        var_C = all_sum(centered.square().sum(dim=(0, 2, 3))) / values
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(var_C * (values / (values - 1)), self.momentum)
        scale_C = self.weight * (var_C + self.eps).rsqrt()
        y = torch.addcmul(self.bias[:, None, None], centered, scale_C[:, None, None])
        return y.to(x_NCHW.dtype)
