"""Batch norms that see the whole batch where each process has a share of it."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from deepcv.errors import DeepcvError
from deepcv.nn.layers.norms import LayerMeanBatchNorm

_SHAREABLE = (nn.BatchNorm1d, nn.BatchNorm2d)


class SharedBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes, which have equally many; for CPUs, torch's own is for GPUs only.

    Mean and then variance are summed over the processes, and their gradients too: exact, whatever the means are.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SharedBatchNorm":
        """One with the very parameters, buffers and mode of another norm."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made._parameters, made._buffers = norm._parameters, norm._buffers
        return made.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  torch's name
        """Any is good."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, C, …), kept."""
        if not self.training:
            return super().forward(input)
        across = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = _total(x.sum(across)) / count
        centred = x - mean.view(shape)
        variance = _total(centred.square().sum(across)) / count
        self._track(mean.detach(), variance.detach() * (count / max(1, count - 1)))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        out = centred * scale.view(shape)
        return (out + self.bias.view(shape) if self.affine else out).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Total(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return _Total.apply(gradients[0])  # type: ignore[no-any-return]


def _total(values: Tensor) -> Tensor:
    return _Total.apply(values)  # type: ignore[no-any-return]


def share_norms(model: nn.Module, device: str) -> None:
    """Replace the batch norms of a model by ones that share their statistics. Raises DeepcvError where a layer cannot."""
    for name, module in model.named_modules():
        if _sees_batches(module) and type(module) not in _SHAREABLE:
            raise DeepcvError(
                f"{name}: {type(module).__name__} would see the share of one process instead of the whole batch; "
                "set train.processes to 1, or use batch_norm or group_norm there"
            )
    if device == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _SHAREABLE):
                setattr(parent, name, SharedBatchNorm.of(child))


def _sees_batches(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm | LayerMeanBatchNorm) or (
        isinstance(module, _InstanceNorm) and module.track_running_stats
    )
