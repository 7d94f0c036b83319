"""Muon, which torch has for matrices only and in bfloat16 only."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 3
_AXES = 4  # of a kernel; tokens, positions and the kernels of sequences are AdamW's
_TOGETHER = 2**23  # values of kernels that are stepped at once
_SIZE = 0.2  # root mean square of AdamW's updates in practice, over its rate
_HELD_SIZE = 0.05  # root mean square of a kernel whose norm is held: a step of rate 0.06 moves it by 0.24 of its norm, as airbench94's


class Muon(torch.optim.AdamW):
    """Orthogonalised momentum for the kernels of convolutions, AdamW for every other parameter (Jordan et al. 2024, Muon).

    A kernel (out, in, h, w) is the matrix (out, in·h·w). Its update has the size that AdamW's would have, so that one `lr` and
    one decoupled `weight_decay` serve both (Liu et al. 2025, arXiv 2502.16982, equation 4). `betas[0]` is the momentum.
    With `hold_norms` each kernel has the same root mean square in front of every step, instead of a decay: for networks with a norm
    behind each convolution, which do not see the scale of a kernel, so that all steps turn it alike (Jordan 2024, airbench94).
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        hold_norms: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)
        self.defaults["hold_norms"] = hold_norms  # which a copy keeps, unlike an attribute

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; those of kernels are freed. Returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            kernels = [p for p in group["params"] if p.ndim == _AXES and p.grad is not None]
            for alike in _alike(kernels):
                self._step_kernels(alike, group)
            for kernel in kernels:
                kernel.grad = None  # so that AdamW passes it by
        super().step()
        return loss

    def _step_kernels(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        """All of one shape at once: a GPU works on kernels for less time than it takes to ask it for each."""
        lr, beta = group["lr"], group["betas"][0]
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        averages = [self._average(kernel) for kernel in kernels]
        torch._foreach_lerp_(averages, gradients, 1 - beta)
        ahead = torch._foreach_lerp(gradients, averages, beta)  # Nesterov
        updates = orthogonalise(torch.stack([update.flatten(1) for update in ahead]))
        if self.defaults["hold_norms"]:  # a kernel that starts at 0 gets its norm from its first step
            norms = torch._foreach_norm(kernels, dtype=torch.float32)
            torch._foreach_clamp_min_(norms, 1e-12)
            torch._foreach_mul_(kernels, [_HELD_SIZE * kernels[0].numel() ** 0.5 / norm for norm in norms])
        else:
            torch._foreach_mul_(kernels, 1 - lr * group["weight_decay"])
        size = _SIZE * max(updates.shape[1:]) ** 0.5
        for kernel, update in zip(kernels, updates, strict=True):
            kernel.add_(update.reshape(kernel.shape), alpha=-lr * size)

    def _average(self, kernel: Tensor) -> Tensor:
        """The mean of its gradients, after one step more."""
        state = self.state[kernel]
        if not state:  # under AdamW's names, which it expects when a checkpoint is loaded
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(kernel))
        state["step"] += 1
        average: Tensor = state["exp_avg"]
        return average


def _alike(kernels: list[Tensor]) -> Iterator[list[Tensor]]:
    """Kernels of one shape together, but no more than memory for their updates is cheap for."""
    of_shape: dict[torch.Size, list[Tensor]] = {}
    for kernel in kernels:
        of_shape.setdefault(kernel.shape, []).append(kernel)
    for alike in of_shape.values():
        most = max(1, _TOGETHER // alike[0].numel())
        for first in range(0, len(alike), most):
            yield alike[first : first + most]


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of (n, rows, columns) near 1, by Newton and Schulz' iteration as in Jordan et al. 2024.

    In the matrices' own precision: in bfloat16, as torch.optim.Muon has it, it takes 13 times as long on a CPU without AMX.
    Every step multiplies by a polynomial of the gram matrix, which commutes with the next one, so that only the first and
    the last product are as long as the matrix: half the time of the iteration as it is written.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    wide = wide / (torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True) + 1e-7)
    gram = wide @ wide.mT
    product = factor = _polynomial(gram)
    for _ in range(_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    found: Tensor = product @ wide
    return found.mT if tall else found


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
