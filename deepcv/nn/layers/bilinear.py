"""torch's bilinear layer, under autocast too."""

from torch import Tensor, nn
from torch.nn import functional as F


class Bilinear(nn.Bilinear):
    """A bilinear layer whose inputs take the precision of its weight: a CPU's autocast does not bring the two together."""

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """(N, …, F1) and (N, …, F2) to (N, …, out)."""
        return self._by(self.weight, input1, input2)

    def _by(self, weight: Tensor, input1: Tensor, input2: Tensor) -> Tensor:
        return F.bilinear(input1.to(weight.dtype), input2.to(weight.dtype), weight, self.bias)
