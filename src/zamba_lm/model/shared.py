"""The shared block (attention, then a gated MLP) and what a call adds to it."""

from typing import NamedTuple

import torch
from torch import nn

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.parts import Linear, Norm, is_plain, project, project_onto
from zamba_lm.ops.adapter import adapter
from zamba_lm.ops.attention import self_attention
from zamba_lm.ops.linear import Normed, gate, gated_linear, linear, summed


class Adapter(nn.Module):
    """One low-rank correction B A of a projection, owned by the call that makes it."""

    def __init__(self, d_in: int, d_out: int, rank: int, *, device=None, dtype=None):
        super().__init__()
        self.A = Linear(d_in, rank, device=device, dtype=dtype)
        self.B = Linear(rank, d_out, device=device, dtype=dtype)

    @property
    def parts(self) -> tuple:
        """A, B and their row scales, if packed."""
        return self.A.weight, self.B.weight, self.A.row_scale, self.B.row_scale

    @property
    def is_plain(self) -> bool:
        return is_plain(self.A, self.B)

    def forward(self, y, x):
        """y + B (A x)."""
        return adapter(y, x, *self.parts) if self.is_plain else project(self.B, project(self.A, x), residual=y)


class Call(NamedTuple):
    """What belongs to one call of a shared block: its adapters, products of its own weights and shared ones (``model/merge.py``),
    and the link to the mixer behind it."""

    adapters: nn.ModuleDict
    merged: dict[str, torch.Tensor]
    link: nn.Module


def call_adapters(c: ZambaConfig, *, device=None, dtype=None) -> nn.ModuleDict:
    """The adapters of one call, by the projection they correct; empty when the model has none."""
    factory = {"rank": c.adapter_rank, "device": device, "dtype": dtype}
    found = nn.ModuleDict()
    if c.adapter_rank:
        found["gate_up"] = Adapter(c.d_model, 2 * c.d_ff, **factory)
    if c.attention_adapters:
        found.update({name: Adapter(c.d_attn, c.n_heads * c.head_dim, **factory) for name in ("q", "k", "v")})
    return found


class SharedBlock(nn.Module):
    """[x ; x_0] -> norm -> attention -> norm -> gated MLP -> the call's link. No residual inside. Stored once,
    called from several layers."""

    def __init__(self, c: ZambaConfig, *, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.c = c
        self.norm_in = Norm(c.d_attn, c.norm_eps, **factory)
        self.qkv = Linear(c.d_attn, 3 * c.n_heads * c.head_dim, **factory)
        self.o = Linear(c.n_heads * c.head_dim, c.d_model, **factory)
        self.norm_mlp = Norm(c.d_model, c.norm_eps, **factory)
        self.gate_up = Linear(c.d_model, 2 * c.d_ff, **factory)
        self.down = Linear(c.d_ff, c.d_model, **factory)

    def forward(self, x_TD, x0_TD, call: "Call", packing, angles=None, cache=None):
        """x_TD: hidden state, x0_TD: embedding output, call: what the call adds, angles: RoPE tables or None, cache: keys and
        values so far (see ``ops.attention``). Returns what enters the mixer, x and what was linked to it (T, D)."""
        qkv = self._qkv(x_TD, x0_TD, call)
        h_TD = self_attention(qkv, self.c.attn_scale, packing, cache, angles).flatten(-2)
        h_TD = project(self.o, h_TD) if cache is None else project_onto(self.o, h_TD, None)
        del qkv  # as large as what the MLP is about to make
        y_TF = self._gate_up(h_TD, call)
        if (weight := call.merged.get("link")) is not None and is_plain(self.down, call.link):
            return linear(y_TF, weight, residual_TO=x_TD, later=cache is not None)
        return project(call.link, project(self.down, y_TF), residual=x_TD)

    def _qkv(self, x_TD, x0_TD, call):
        """Queries, keys and values (T, 3, heads, head_dim)."""
        adapters, weight = call.adapters, call.merged.get("qkv")
        if weight is not None and is_plain(self.qkv) and all(adapters[name].is_plain for name in "qkv"):
            qkv = linear((x_TD, x0_TD), weight, norm=Normed(self.norm_in.weight, self.norm_in.eps))
        elif "q" in adapters:
            h_TE = self.norm_in(torch.cat([summed(x_TD), x0_TD], dim=-1))
            parts = project(self.qkv, h_TE).chunk(3, dim=-1)
            qkv = torch.cat([adapters[name](part, h_TE) for name, part in zip("qkv", parts)], dim=-1)
        else:
            qkv = project(self.qkv, (x_TD, x0_TD), norm=self.norm_in)
        return qkv.unflatten(-1, (3, self.c.n_heads, self.c.head_dim))

    def _gate_up(self, h_TD, call):
        norm = Normed(self.norm_mlp.weight, self.norm_mlp.eps)
        adapter = call.adapters["gate_up"] if "gate_up" in call.adapters else None
        if is_plain(self.gate_up) and (adapter is None or adapter.is_plain):
            if (weight := call.merged.get("gate_up")) is not None:
                return gated_linear(h_TD, weight, norm=norm)
            parts = None if adapter is None else adapter.parts
            return gated_linear(h_TD, self.gate_up.weight, self.gate_up.row_scale, norm=norm, adapter=parts)
        h_TD = norm(summed(h_TD))
        y_T2F = project(self.gate_up, h_TD)
        return gate(y_T2F if adapter is None else adapter(y_T2F, h_TD))
