"""The shared block (attention, then a gated MLP) and what a call adds to it."""

import torch
import torch.nn.functional as F
from torch import nn

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.parts import Linear, Norm
from zamba_lm.ops.adapter import adapter
from zamba_lm.ops.attention import attention
from zamba_lm.ops.rope import rope


class Adapter(nn.Module):
    """One low-rank correction B A of a projection, owned by the call that makes it."""

    def __init__(self, d_in: int, d_out: int, rank: int, *, device=None, dtype=None):
        super().__init__()
        self.A = Linear(d_in, rank, device=device, dtype=dtype)
        self.B = Linear(rank, d_out, device=device, dtype=dtype)

    def forward(self, y, x):
        """y + B (A x)."""
        return adapter(y, x, self.A.weight, self.B.weight, self.A.row_scale, self.B.row_scale)


def call_adapters(c: ZambaConfig, *, device=None, dtype=None) -> nn.ModuleDict:
    """The adapters of one call, by the projection they correct; empty when the model has none."""
    factory = {"rank": c.adapter_rank, "device": device, "dtype": dtype}
    found = nn.ModuleDict()
    if c.adapter_rank:
        found["gate_up"] = Adapter(c.d_model, 2 * c.d_ff, **factory)
    if c.attention_adapters:
        found.update({name: Adapter(c.d_attn, c.d_attn, **factory) for name in ("q", "k", "v")})
    return found


class SharedBlock(nn.Module):
    """[x ; x_0] -> norm -> attention -> norm -> gated MLP. No residual inside. Stored once, called from several layers."""

    def __init__(self, c: ZambaConfig, *, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.c = c
        self.norm_in = Norm(c.d_attn, c.norm_eps, **factory)
        self.qkv = Linear(c.d_attn, 3 * c.d_attn, **factory)
        self.o = Linear(c.d_attn, c.d_model, **factory)
        self.norm_mlp = Norm(c.d_model, c.norm_eps, **factory)
        self.gate_up = Linear(c.d_model, 2 * c.d_ff, **factory)
        self.down = Linear(c.d_ff, c.d_model, **factory)

    def forward(self, x_TD, x0_TD, adapters, packing, angles=None, cache=None, past=None):
        """x_TD: hidden state, x0_TD: embedding output, adapters: the call's own, angles: RoPE tables or None, cache/past: keys
        and values so far (see ``ops.attention``). Returns (T, D)."""
        h_TE = self.norm_in(torch.cat([x_TD, x0_TD], dim=-1))
        h_TD = self.o(self._attend(h_TE, adapters, packing, angles, cache, past))
        return self._mlp(self.norm_mlp(h_TD), adapters)

    def _attend(self, h_TE, adapters, packing, angles, cache, past):
        qkv = self.qkv(h_TE)
        if "q" in adapters:
            qkv = torch.cat([adapters[name](x, h_TE) for name, x in zip("qkv", qkv.chunk(3, dim=-1))], dim=-1)
        heads = self.c.n_heads
        qk, v = qkv.unflatten(-1, (3 * heads, self.c.head_dim)).split((2 * heads, heads), dim=1)
        if angles is not None:
            qk = rope(qk, angles)
        q, k = qk.split(heads, dim=1)
        return attention(q, k, v, self.c.attn_scale, packing, cache, past).flatten(-2)

    def _mlp(self, h_TD, adapters):
        gate_up = self.gate_up(h_TD)
        if "gate_up" in adapters:
            gate_up = adapters["gate_up"](gate_up, h_TD)
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down(F.gelu(gate) * up)
