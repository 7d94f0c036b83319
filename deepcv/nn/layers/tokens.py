"""Vision transformers' layers on tokens (N, T, D), after Dosovitskiy 2021, arXiv 2010.11929."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STD = 0.02  # of learned tokens and positions at the start


class _Attention(nn.Module):
    """What follows the layers that give queries, keys and values, which a subclass names in `layers`.

    `dropout` acts on the attention weights, `out_dropout` on what comes out. `qk_norm` is a layer norm of the queries and one
    of the keys, of each head (Dehghani 2023, arXiv 2302.05442).
    """

    def __init__(
        self, layers: Mapping[str, nn.Linear], features: int, heads: int, dropout: float, out_dropout: float, proj_bias: bool,
        qk_norm: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, layer in layers.items():  # the first, as their weights are drawn first
            self.add_module(name, layer)
        self.q_norm, self.k_norm = _head_norms(features // heads, qk_norm)
        self.proj = nn.Linear(features, features, bias=proj_bias)
        self.out = nn.Dropout(out_dropout)
        self.heads, self.dropout = heads, dropout

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"heads={self.heads}, dropout={self.dropout}"

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, heads, T or S, D / heads) to (N, T, D)."""
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value, dropout_p=dropout)
        out: Tensor = self.out(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


class SelfAttention(_Attention):
    """Multi-head self-attention: softmax(q kᵀ / sqrt(D / heads)) v per head, then a linear layer (Vaswani 2017, 1706.03762)."""

    qkv: nn.Linear

    def __init__(
        self, features: int, heads: int, qkv_bias: bool, dropout: float, out_dropout: float, proj_bias: bool = True,
        qk_norm: bool = False,
    ) -> None:  # fmt: skip
        layers = {"qkv": nn.Linear(features, 3 * features, bias=qkv_bias)}
        super().__init__(layers, features, heads, dropout, out_dropout, proj_bias, qk_norm)

    def forward(self, tokens_ntd: Tensor) -> Tensor:
        """(N, T, D), kept."""
        qkv: Tensor = self.qkv(tokens_ntd).unflatten(2, (3, self.heads, -1))
        return self.mixed(*qkv.permute(2, 0, 3, 1, 4).unbind(0))


class CrossAttention(_Attention):
    """The same of two values: the queries from the first, keys and values from the context, of `context` features.

    The layer `q` and the layer `kv` stand where self-attention has `qkv`.
    """

    q: nn.Linear
    kv: nn.Linear

    def __init__(
        self, features: int, context: int, heads: int, qkv_bias: bool, dropout: float, out_dropout: float,
        proj_bias: bool = True, qk_norm: bool = False,
    ) -> None:  # fmt: skip
        layers = {
            "q": nn.Linear(features, features, bias=qkv_bias),
            "kv": nn.Linear(context, 2 * features, bias=qkv_bias),
        }
        super().__init__(layers, features, heads, dropout, out_dropout, proj_bias, qk_norm)

    def forward(self, tokens_ntd: Tensor, context_nse: Tensor) -> Tensor:
        """(N, T, D) and (N, S, E) to (N, T, D)."""
        query = self.q(tokens_ntd).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(context_nse).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.mixed(query, key, value)


def _head_norms(features: int, wanted: bool) -> tuple[nn.Module, nn.Module]:
    """Of the queries and the keys; timm's names and epsilon, so that its weights fit."""
    if not wanted:
        return nn.Identity(), nn.Identity()
    return nn.LayerNorm(features, eps=1e-6), nn.LayerNorm(features, eps=1e-6)


class PatchEmbedding(nn.Module):
    """Cuts maps into square patches and embeds each: (N, C, H, W) to (N, H / patch * W / patch, D), row by row."""

    def __init__(self, channels: int, features: int, patch: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, features, patch, patch, bias=bias)

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """The patches as tokens."""
        tokens: Tensor = self.proj(maps_nchw).flatten(2).transpose(1, 2)
        return tokens


class ClassToken(nn.Module):
    """A learned token before the others: (N, T, D) to (N, T + 1, D)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, features))
        if not self.token.is_meta:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small and random."""
        nn.init.normal_(self.token, std=_STD)

    def no_weight_decay(self) -> set[str]:
        """What optimizers leave as large as it is, as networks of timm say it."""
        return {"token"}

    def forward(self, tokens_ntd: Tensor) -> Tensor:
        """The tokens with the learned one at 0."""
        return torch.cat([self.token.expand(tokens_ntd.shape[0], -1, -1), tokens_ntd], 1)


class Positions(nn.Module):
    """Adds a learned vector to each token by its place: (N, T, D), kept. T is fixed."""

    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, tokens, features))
        if not self.embedding.is_meta:
            self.reset_parameters()

    def extra_repr(self) -> str:
        """Its size."""
        return f"tokens={self.embedding.shape[1]}, features={self.embedding.shape[2]}"

    def reset_parameters(self) -> None:
        """Small and random."""
        nn.init.trunc_normal_(self.embedding, std=_STD)

    def no_weight_decay(self) -> set[str]:
        """What optimizers leave as large as it is, as networks of timm say it."""
        return {"embedding"}

    def forward(self, tokens_ntd: Tensor) -> Tensor:
        """The tokens, told where they stand."""
        return tokens_ntd + self.embedding
