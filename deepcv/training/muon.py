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
            if kernels := [p for p in group["params"] if p.ndim > 2 and p.grad is not None]:
                self._step_kernels(kernels, group)
            for kernel in kernels:
                kernel.grad = None  # so that AdamW passes it by
        super().step()
        return loss

    def _step_kernels(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        """All at once where torch can: a GPU works on kernels for less time than it takes to ask it for each."""
        lr, beta = group["lr"], group["betas"][0]
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        averages = [self._average(kernel) for kernel in kernels]
        torch._foreach_lerp_(averages, gradients, 1 - beta)
        ahead = torch._foreach_lerp(gradients, averages, beta)  # Nesterov
        updates = orthogonalised([update.flatten(1) for update in ahead])
        if self._hold_norms:  # a kernel that starts at 0 gets its norm from its first step
            norms = torch._foreach_norm(kernels)
            torch._foreach_clamp_min_(norms, 1e-12)
            torch._foreach_mul_(
                kernels, [_HELD_SIZE * k.numel() ** 0.5 / n for k, n in zip(kernels, norms, strict=True)]
            )
        else:
            torch._foreach_mul_(kernels, 1 - lr * group["weight_decay"])
        for kernel, update in zip(kernels, updates, strict=True):
            size = _SIZE * max(update.shape) ** 0.5
            kernel.add_(update.reshape(kernel.shape), alpha=-lr * size)

    def _average(self, kernel: Tensor) -> Tensor:
        """The mean of its gradients, after one step more."""
        state = self.state[kernel]
        if not state:  # under AdamW's names, which it expects when a checkpoint is loaded
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(kernel))
        state["step"] += 1
        average: Tensor = state["exp_avg"]
        return average


def orthogonalised(matrices: list[Tensor]) -> list[Tensor]:
    """Each matrix (rows, columns) by `orthogonalise`, those of one shape together."""
    places: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault(matrix.shape, []).append(place)
    found = list(matrices)
    for alike in places.values():
        for place, made in zip(alike, orthogonalise(torch.stack([matrices[place] for place in alike])), strict=True):
            found[place] = made
    return found


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
