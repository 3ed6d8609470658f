"""A Zamba of which every rank holds a share: the same model with local sizes, and with sums over ranks where shares meet."""

from typing import Any, cast

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.mamba2 import GATED_NORM_EPS, Mamba2
from zamba_lm.model.parts import Linear, project
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.linear import Normed, linear
from zamba_lm.ops.norm import gated_norm
from zamba_lm.parallel.direct import Direct
from zamba_lm.parallel.group import Ranks
from zamba_lm.parallel.shard import Shard
from zamba_lm.parallel.total import total, with_square


class Summed(Linear):
    """A projection whose inputs are split over the ranks. Each multiplies its own; the sum is everybody's."""

    ranks: Ranks
    span: int  # ranks that are normed together, where a norm comes before
    direct: Direct | None = None  # a quicker way to the others, for few rows

    def forward(self, x, *, norm=None, residual=None):
        part_TD = super().forward(x, norm=norm)
        if norm is None:
            return self.sum(part_TD, residual)
        return self.sum_normed(part_TD, x, None, norm.eps, residual)

    def sum(self, part_TD, residual_TD):
        """residual + the sum of everybody's part."""
        if self.direct is not None and self.direct.takes(part_TD):
            return self.direct.total(part_TD, residual_TD)
        return total(self.ranks.gather(part_TD), residual_TD, D=part_TD.shape[1])

    def sum_normed(self, part_TD, y_TI, z_TI, eps, residual_TD):
        """The same, of parts made from what ranks have normed for themselves: y, or y * SiLU(z)."""
        if self.span == 1:
            return self.sum(part_TD, residual_TD)
        if self.direct is not None and self.direct.takes(part_TD):
            return self.direct.total(part_TD, residual_TD, y_TI=y_TI, z_TI=z_TI, span=self.span, eps=eps)
        parts_RTW = self.ranks.gather(with_square(part_TD, y_TI, z_TI))
        return total(parts_RTW, residual_TD, D=part_TD.shape[1], span=self.span, eps=eps)


class SplitMamba2(Mamba2):
    """A mixer with some of the heads, whose norm may span ranks."""

    out_proj: Summed

    def _afresh(self, x_TD, norm, packing, residual_TD):
        return self._by_parts(project(self.in_proj, x_TD, norm=norm), self.constants(), packing, None, residual_TD)

    def _out(self, y_TI, z_TI, residual_TD):
        normed_TI = gated_norm(y_TI, z_TI, self.norm_weight, GATED_NORM_EPS, self.c.n_groups)
        part_TD = linear(normed_TI, self.out_proj.weight, self.out_proj.row_scale)
        return self.out_proj.sum_normed(part_TD, y_TI, z_TI, GATED_NORM_EPS, residual_TD)


class ParallelZamba(Zamba):
    """A model split over ranks: heads of mixers and of attention, columns of the MLP, rows of the vocabulary in the head.

    For inference. Every rank must make the same passes in the same order, since they wait for each other in each layer; all get
    the same logits, bit for bit. ``config`` says what this rank holds (see ``Shard``), ``config.whole`` what the model is.
    """

    def __init__(self, config: ZambaConfig, ranks: Ranks, *, device=None, dtype=None):
        if isinstance(config, Shard):
            raise ZambaError("this model is split over ranks already")
        ranks.check(torch.device(device or "cpu"))
        shard = Shard.of(config, ranks)
        super().__init__(cast(ZambaConfig, shard), device=device, dtype=dtype)
        self.ranks = ranks
        for module in [layer.mixer for layer in self.layers] + list(self.blocks):
            if isinstance(module, Mamba2):
                module.__class__ = SplitMamba2  # the same parts, one of them put to use in another way
            for name in ("out_proj", "o", "down"):
                if isinstance(part := getattr(module, name, None), Linear):
                    part.__class__ = Summed
                    part.ranks, part.span = ranks, shard.span
        self.requires_grad_(False).eval()

    def open_direct(self) -> "ParallelZamba":
        """From now on, sum few rows by writing into each other's memory (see ``direct.py``); returns the model. ZambaError where
        GPUs cannot."""
        ranks = self.ranks
        direct = Direct.open(ranks.rank, ranks.size, ranks.group, self.config.d_model, self.device)
        for module in self.modules():
            if isinstance(module, Summed):
                module.direct = direct
        return self

    def _score(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Each rank multiplies its rows of the embedding, and all put the results side by side. The last rank's rows begin a
        little earlier where the vocabulary does not divide, so that all have the same number."""
        V, size = self.config.vocab_size, self.ranks.size
        n = -(-V // size)
        first = min(self.ranks.rank * n, V - n)
        norm = Normed(self.norm.weight, self.norm.eps)
        parts_RTn = self.ranks.gather(linear(x_TD, self.embedding.weight[first : first + n], norm=norm))
        if size * n == V:
            return parts_RTn.transpose(0, 1).reshape(len(x_TD), V)
        starts = [min(rank * n, V) for rank in range(size)]
        return torch.cat([part[:, n - min(n, V - at) :] for part, at in zip(parts_RTn, starts)], dim=-1)

    def init_weights(self, seed: int = 0) -> "Zamba":
        raise ZambaError("each rank would draw its own weights: use zamba_lm.parallel.random_parallel")

    def save(self, folder: Any, *, dtype=None) -> None:
        raise ZambaError("a rank holds only its share of the weights: save the model before it is split")
