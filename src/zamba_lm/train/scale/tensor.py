"""A Zamba whose layers are split over ranks while it is trained (tensor parallel), by the table of ``parallel/shard.py``.

The residual stream is whole on every rank. Where it enters a part of which each rank holds a share it goes in as it is, and the
ranks' gradients are added up on the way back (``enter``); where the shares' results meet they are added up, and the gradient goes
back to each as it is (``leave``). Norms stand behind ``enter``, so they run, and their weights learn, from each rank's share.

The embedding is whole. It learns from the beginning and from the head, of which each rank takes its part of the tokens. So of all
parameters that every rank holds the gradients are parts of a sum, which ``Split.end_step`` makes; links alone see all of it.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from zamba_lm.errors import ZambaError
from zamba_lm.hf.loss import loss, targets
from zamba_lm.model.mamba1 import Mamba1
from zamba_lm.model.mamba2 import GATED_NORM_EPS, Mamba2
from zamba_lm.model.parts import Linear, project
from zamba_lm.model.shared import SharedBlock
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.mamba2 import mamba2
from zamba_lm.parallel.group import Ranks
from zamba_lm.parallel.shard import Shard, cut
from zamba_lm.train.scale.exchange import add_up, enter, leave, mine_of, own
from zamba_lm.train.scale.pieces import local
from zamba_lm.train.scale.shares import mark, share_of
from zamba_lm.train.scale.span_norm import span_norm


class Summed(Linear):
    """A projection whose inputs are split over the ranks."""

    ranks: Ranks

    def forward(self, x, *, norm=None, residual=None):
        y_TO = leave(super().forward(x, norm=norm), self.ranks)
        return y_TO if residual is None else residual + y_TO


class SplitBlock(SharedBlock):
    """Some of the attention's heads, some of the MLP's columns."""

    ranks: Ranks

    def _qkv(self, x_TD, x0_TD, call):
        return super()._qkv(enter(x_TD, self.ranks), x0_TD, call)  # x_0 enters once for all calls

    def _gate_up(self, h_TD, call):
        return super()._gate_up(enter(h_TD, self.ranks), call)


class SplitMamba1(Mamba1):
    """Some of the heads."""

    ranks: Ranks

    def forward(self, x_TD, norm, packing, memory=None, residual_TD=None):
        return super().forward(enter(x_TD, self.ranks), norm, packing, memory, residual_TD)


class SplitMamba2(Mamba2):
    """Some of the heads; its norm may span ranks."""

    ranks: Ranks
    span: Ranks  # those whose heads are normed together

    def _afresh(self, x_TD, norm, packing, residual_TD):
        h_TE = project(self.in_proj, enter(x_TD, self.ranks), norm=norm)
        if self.span.size > 1:
            return self._by_parts(h_TE, self.constants(), packing, None, residual_TD)
        parameters = self.conv_weight, self.conv_bias, self.dt_bias, self.A_log, self.D, self.norm_weight
        how: dict[str, Any] = {"groups": self.c.n_groups, "eps": GATED_NORM_EPS, "dt_limit": self.c.dt_limit}
        return project(self.out_proj, mamba2(h_TE, *parameters, packing, **how), residual=residual_TD)

    def _out(self, y_TI, z_TI, residual_TD):
        normed_TI = span_norm(y_TI, z_TI, self.norm_weight, GATED_NORM_EPS, self.span)
        return project(self.out_proj, normed_TI, residual=residual_TD)


class SplitZamba(Zamba):
    """A model of which a rank holds a share, with gradients. ``config.whole`` says what the model is."""

    ranks: Ranks

    def _embedded(self, batch):
        x_TD, _ = super()._embedded(batch)
        x_TD = own(x_TD, self.ranks)
        return x_TD, enter(x_TD, self.ranks)

    def hidden(self, batch, state=None, *, watch=None):
        return self.norm(enter(self._run(batch, state, watch), self.ranks))

    def save(self, folder, *, dtype=None) -> None:
        raise ZambaError("a rank holds only its share of the weights: the trainer's export writes the model")


KINDS: dict[type, type] = {SharedBlock: SplitBlock, Mamba1: SplitMamba1, Mamba2: SplitMamba2}


class Split:
    """Splits a wrapped model (``hf.wrap``) in place: what was whole becomes this rank's share, in tensors of its own."""

    def __init__(self, model: nn.Module, ranks: Ranks):
        zamba: Any = model.zamba
        shard = Shard.of(zamba.config, ranks)
        self.ranks, self.span = ranks, span_of(shard, ranks)
        self._replace(zamba, shard)
        model._loss = MethodType(partial(_loss_of_parts, ranks), model)  # type: ignore[assignment]

    def _replace(self, zamba: Any, shard: Shard) -> None:
        """Layers and blocks of a rank's sizes in place of the whole ones; embedding and last norm stay."""
        new, old = Zamba(shard, device="meta"), dict(zamba.named_parameters())  # type: ignore[arg-type]
        for name, _ in list(new.named_parameters()):
            owner, _, last = name.rpartition(".")
            share = cut(name, old[name].detach(), shard)
            kept = old[name] if share.shape == old[name].shape else nn.Parameter(share.clone(), old[name].requires_grad)
            setattr(new.get_submodule(owner), last, kept)
        for mine, theirs in zip(new.layers, zamba.layers):
            mine.recomputed = theirs.recomputed
        for module in new.modules():
            self._put_to_use(module)
        zamba.layers, zamba.blocks, zamba.config = new.layers, new.blocks, shard
        zamba.__class__, zamba.ranks = SplitZamba, self.ranks

    def _put_to_use(self, module: Any) -> None:
        """Another way through the same parts."""
        if kind := KINDS.get(type(module)):
            module.__class__, module.ranks, module.span = kind, self.ranks, self.span
            for name in ("out_proj", "o", "down"):
                if part := getattr(module, name, None):
                    part.__class__, part.ranks = Summed, self.ranks

    def mark(self, zamba: Zamba) -> None:
        """Parameters may have been replaced by pieces of them."""
        mark(zamba, zamba.config, self.ranks)  # type: ignore[arg-type]

    def end_step(self, zamba: Zamba) -> None:
        """Add up the gradients of what several ranks hold."""
        everywhere, in_span = [], []
        for name, p in zamba.named_parameters():
            if p.grad is None:
                continue
            share = share_of(p)
            if share.whole:
                everywhere.append(local(p.grad))
                if name.endswith(".link.weight"):  # each rank has all of it, up to rounding
                    everywhere[-1].div_(self.ranks.size)
            else:
                in_span += [chunk.numbers for chunk in share.chunks(p.grad) if not chunk.run.alone]
        add_up(everywhere, self.ranks.group)
        add_up(in_span, self.span.group)


def span_of(shard: Shard, ranks: Ranks) -> Ranks:
    """Neighbouring ranks whose heads are normed together and read the same maps."""
    if shard.span in (1, ranks.size):
        return ranks if shard.span > 1 else Ranks(0, 1)
    groups = [dist.new_group(range(at, at + shard.span)) for at in range(0, dist.get_world_size(), shard.span)]
    return Ranks.of(groups[dist.get_rank() // shard.span])


def _loss_of_parts(ranks: Ranks, model: Any, read, labels, shift_labels, count) -> Tensor:
    """The causal model's loss; each rank takes its part of the tokens to the head."""
    given = labels if shift_labels is None else shift_labels
    targets_N = targets(given.to(read.hidden_ND.device), read.layout, shifted=shift_labels is not None)
    mine = mine_of(len(targets_N), ranks)
    if count is None:
        count = (targets_N >= 0).sum().clamp(min=1)
    with model._kernels():
        return leave(loss(read.hidden_ND[mine], model.lm_head, targets_N[mine], count), ranks)
