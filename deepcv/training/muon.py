"""Muon, which torch has for matrices only and in bfloat16 only."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 3
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
        self._hold_norms = hold_norms

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; those of kernels are freed. Returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for kernel in (p for p in group["params"] if p.ndim > 2 and p.grad is not None):
                self._step_kernel(kernel, group)
                kernel.grad = None  # so that AdamW passes it by
        super().step()
        return loss

    def _step_kernel(self, kernel: Tensor, group: dict[str, Any]) -> None:
        gradient, state, beta = kernel.grad, self.state[kernel], group["betas"][0]
        assert gradient is not None  # noqa: S101  # for mypy
        if not state:  # under AdamW's names, which it expects when a checkpoint is loaded
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(kernel))
        state["step"] += 1
        average = state["exp_avg"].lerp_(gradient, 1 - beta)
        update = orthogonalise(gradient.lerp(average, beta).flatten(1))  # Nesterov's look ahead
        size = _SIZE * max(update.shape) ** 0.5
        if self._hold_norms:  # a kernel that starts at 0 gets its norm from its first step
            kernel.mul_(_HELD_SIZE * kernel.numel() ** 0.5 / kernel.norm().clamp(min=1e-12))
        else:
            kernel.mul_(1 - group["lr"] * group["weight_decay"])
        kernel.add_(update.reshape(kernel.shape), alpha=-group["lr"] * size)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Bring the singular values of (rows, columns) near 1, by Newton and Schulz' iteration as in Jordan et al. 2024.

    In the matrix's own precision: in bfloat16, as torch.optim.Muon has it, it takes 13 times as long on a CPU without AMX.
    Every step multiplies by a polynomial of the gram matrix, which commutes with the next one, so that only the first and
    the last product are as long as the matrix: half the time of the iteration as it is written.
    """
    wide: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.T
    product = factor = _polynomial(gram)
    for _ in range(_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    wide = product @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor
