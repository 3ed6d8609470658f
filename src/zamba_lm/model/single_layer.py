"""The parts of a layer for one token of one sequence: every view made beforehand, every result in its place."""

from collections.abc import Callable
from math import sqrt
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from zamba_lm.model.mamba2 import GATED_NORM_EPS, Mamba2
from zamba_lm.model.parts import Linear
from zamba_lm.model.shared import Adapter, SharedBlock
from zamba_lm.model.state import Memory
from zamba_lm.model.zamba import Layer
from zamba_lm.ops.step import time_step

SMALL = 1 << 16  # numbers up to which a weight that is not packed is widened, because float32 products start sooner

Product = Callable[[Tensor], Tensor]


def product(weight_OI: Tensor, row_scale_O: Tensor | None) -> Product:
    """x (1, I) to (1, O), of the model's dtype: ``ops.linear`` of one row on a CPU."""
    if row_scale_O is None:
        return lambda x_1I: F.linear(x_1I, weight_OI)
    return lambda x_1I: torch._weight_int8pack_mm(x_1I, weight_OI, row_scale_O)


def projection(linear: Linear) -> Product:
    return product(linear.weight, linear.row_scale)


def correction(adapter: Adapter) -> Product:
    """x (1, I) to B (A x), (1, O)."""
    first, B = projection(adapter.A), adapter.B
    if B.row_scale is None and B.weight.numel() <= SMALL:
        B_RO = B.weight.T.float().contiguous()
        return lambda x_1I: torch.mm(first(x_1I).float(), B_RO)
    second = projection(B)
    return lambda x_1I: second(first(x_1I))


class Rms:
    """RMSNorm of what stands in a float32 vector when it is called, each group by its own rms: (1, I) in the weight's dtype."""

    def __init__(self, x_I: Tensor, weight_I: Tensor, eps: float, groups: int = 1):
        self.eps, self.width, self.zero = eps, len(x_I) // groups, torch.zeros(())
        self.y_1I = torch.empty(1, len(x_I), dtype=weight_I.dtype)
        self.groups = list(zip(*(one.split(self.width) for one in (x_I, weight_I.float(), self.y_1I[0])), strict=True))

    def __call__(self) -> Tensor:
        for x, weight, y in self.groups:
            scale = 1 / sqrt(torch.dot(x, x).item() / self.width + self.eps)
            torch.addcmul(self.zero, x, weight, value=scale, out=y)
        return self.y_1I


class Mixer:
    """A layer's norm and its Mamba-2 mixer (``ops.step.mamba2_step`` between the projections), on what stands in ``x_D``."""

    def __init__(self, layer: Layer, x_D: Tensor, memory: Memory):
        m = cast(Mamba2, layer.mixer)
        assert m.frozen is not None, "made ready before (model/ready.py)"
        self.norm = Rms(x_D, layer.norm.weight, layer.norm.eps)
        self.in_proj, self.out_proj, self.dt_limit = projection(m.in_proj), projection(m.out_proj), m.c.dt_limit
        conv_weight_CK, conv_bias_C, self.dt_bias_H, self.A_H, D_H = m.frozen
        self.weight_KC, self.bias_1C, self.D_H1 = conv_weight_CK.T.contiguous(), conv_bias_C[None], D_H[:, None]
        self._make_rows(m, memory.window[0])
        self._make_state(m, memory.ssm)
        self.norm_y = Rms(self.y_I, m.norm_weight, GATED_NORM_EPS, m.c.n_groups)

    def _make_rows(self, m, window_KC):
        """Rows [z | x B C | dt] of the last K tokens, of the earlier ones just what is convolved; below it, what it makes."""
        (I, C, _), K = m.sizes, m.c.d_conv  # noqa: E741
        rows_KE = torch.zeros(K, sum(m.sizes))
        self.h_1E, self.z_I, self.dt_H = rows_KE[-1:], rows_KE[-1, :I], rows_KE[-1, I + C :]
        self.taps_KC, self.window_KC = rows_KE[:, I : I + C], window_KC
        self.before, self.after = self.taps_KC[:-1], self.taps_KC[1:]
        self.weighted_KC, self.conv_1C, self.ones_1K = torch.empty(K, C), torch.empty(1, C), torch.ones(1, K)

    def _make_state(self, m, ssm_SHPN):
        """Views of the SSM state, of x, B and C behind the convolution, and of y; a group's heads share B and C."""
        (_, H, P, N), G = ssm_SHPN.shape, m.c.n_groups
        x_I, B_M, C_M = self.conv_1C[0].split(m.parts)
        self.x_HP, self.B_G1N, self.C_GN1 = x_I.view(H, P), B_M.view(G, 1, N), C_M.view(G, N, 1)
        self.state_HX, self.state_GXN = ssm_SHPN.view(H, P * N), ssm_SHPN.view(G, -1, N)
        self.xdt_HP, self.y_I = torch.empty(H, P), torch.empty(H * P)
        self.xdt_GX1, self.y_GX1, self.y_HP = self.xdt_HP.view(G, -1, 1), self.y_I.view(G, -1, 1), self.y_I.view(H, P)

    def __call__(self) -> Tensor:
        """What is to be added to the residual stream, (D)."""
        self.h_1E.copy_(self.in_proj(self.norm()))
        self._convolve()
        self._recur()
        self.y_I.mul_(F.silu(self.z_I))
        return self.out_proj(self.norm_y())[0]

    def _convolve(self):
        self.before.copy_(self.window_KC)
        self.window_KC.copy_(self.after)
        torch.mul(self.taps_KC, self.weight_KC, out=self.weighted_KC)
        torch.addmm(self.bias_1C, self.ones_1K, self.weighted_KC, out=self.conv_1C)  # as a product, the sum starts sooner
        F.silu(self.conv_1C, inplace=True)

    def _recur(self):
        dt_H = time_step(self.dt_H, self.dt_bias_H, self.dt_limit)
        torch.mul(self.x_HP, dt_H[:, None], out=self.xdt_HP)
        self.state_HX.mul_((dt_H * self.A_H).exp_()[:, None])
        self.state_GXN.addcmul_(self.xdt_GX1, self.B_G1N)
        torch.bmm(self.state_GXN, self.C_GN1, out=self.y_GX1)
        self.y_HP.addcmul_(self.x_HP, self.D_H1)


class Call:
    """A call of a shared block: of what stands in ``both_1E``, [x | x_0], it writes x and what is linked to it to ``into_D``."""

    def __init__(self, block: SharedBlock, layer: Layer, both_1E: Tensor, into_D: Tensor, store_2NTd: Tensor, dtype):
        c = block.c
        self.x_D, self.into_D, self.scale = both_1E[0, : c.d_model], into_D, c.attn_scale
        self.qkv, self.o, self.gate_up, self.down = map(projection, (block.qkv, block.o, block.gate_up, block.down))
        self.link = projection(layer.link)
        self._make_attention(c, store_2NTd, dtype)
        self.h_D, self.y_12F, self.y_1F = torch.empty(c.d_model), torch.empty(1, 2 * c.d_ff), torch.empty(1, c.d_ff, dtype=dtype)
        self.gate, self.up = self.y_12F.chunk(2, dim=1)
        self.norm_in = Rms(both_1E[0], block.norm_in.weight, block.norm_in.eps)
        self.norm_mlp = Rms(self.h_D, block.norm_mlp.weight, block.norm_mlp.eps)
        corrections = {name: correction(cast(Adapter, adapter)) for name, adapter in layer.adapters.items()}
        self.corrected = corrections.pop("gate_up", None)
        self.corrected_parts = [(part, corrections[n]) for n, part in zip("qkv", self.qkv_1F.chunk(3, dim=1)) if n in corrections]

    def _make_attention(self, c, store_2NTd, dtype):
        """Where queries, keys and values lie, in the model's dtype and, while they are turned, in float32."""
        self.store_2NTd, (self.keys, self.values) = store_2NTd, store_2NTd[:, None].unbind(0)
        self.qkv_1F = torch.empty(1, 3 * c.n_heads * c.head_dim, dtype=dtype)
        qkv_3Nd = self.qkv_1F.view(3, c.n_heads, c.head_dim)
        self.q_1N1d, self.qk_2Nd, self.kv_2Nd = qkv_3Nd[0][None, :, None], qkv_3Nd[:2], qkv_3Nd[1:]
        self.wide_2Nd = torch.empty(2, c.n_heads, c.head_dim)
        self.turned_2Nd = torch.empty_like(self.wide_2Nd)
        self.halves = [one.chunk(2, dim=-1) for one in (self.wide_2Nd, self.turned_2Nd)]

    def __call__(self, past: int, turns: tuple[Tensor, Tensor] | None) -> None:
        self._project()
        if turns is not None:
            self._turn(*turns)
        self.h_D.copy_(self.o(self._attend(past))[0])
        torch.add(self.x_D, self.link(self.down(self._gated()))[0], out=self.into_D)

    def _project(self):
        h_1E = self.norm_in()
        self.qkv_1F.copy_(self.qkv(h_1E))
        for part, correct in self.corrected_parts:
            part.add_(correct(h_1E))

    def _turn(self, cos_1f, sin_1f):
        """``ops.rope`` of queries and keys."""
        (first, second), (turned_first, turned_second) = self.halves
        self.wide_2Nd.copy_(self.qk_2Nd)
        torch.mul(first, cos_1f, out=turned_first).addcmul_(second, sin_1f, value=-1)
        torch.mul(second, cos_1f, out=turned_second).addcmul_(first, sin_1f)
        self.qk_2Nd.copy_(self.turned_2Nd)

    def _attend(self, past):
        self.store_2NTd[:, :, past].copy_(self.kv_2Nd)
        keys, values = self.keys[:, :, : past + 1], self.values[:, :, : past + 1]
        return F.scaled_dot_product_attention(self.q_1N1d, keys, values, scale=self.scale).reshape(1, -1)

    def _gated(self):
        h_1D = self.norm_mlp()
        self.y_12F.copy_(self.gate_up(h_1D))
        if self.corrected is not None:
            self.y_12F.add_(self.corrected(h_1D))
        return torch.mul(F.gelu(self.gate), self.up, out=self.y_1F)
