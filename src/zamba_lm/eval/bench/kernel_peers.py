"""The same work by others: mamba-ssm, causal-conv1d, torch's own attention. Each function returns what is installed, by name.

Others want other layouts; what we hand them is a view where their kernels take one, and made ready before the timed call
where they do not.
"""

from functools import lru_cache
from importlib import import_module

import torch
import torch.nn.functional as F

from zamba_lm.eval.bench.kernel_work import leaves_of, loss_weights, with_gradients
from zamba_lm.model.config import ZambaConfig

CHUNK = 256  # of mamba-ssm's SSD: what transformers gives it


def _find(module: str, name: str):
    """A function of an installed package, or None."""
    try:
        return getattr(import_module(module), name)
    except Exception:  # not installed, or broken: whatever it throws
        return None


def conv(weight, bias, rows: int, backward: bool) -> dict:
    theirs = _find("causal_conv1d", "causal_conv1d_fn")
    if theirs is None:
        return {}

    def forward(inputs, leaves):
        x, w, b = leaves or (inputs[0], weight, bias)
        x_BCT = x.unflatten(0, (rows, -1)).transpose(1, 2)  # channel-last, as they like it best
        return theirs(x_BCT, w.to(x.dtype), b.to(x.dtype), activation="silu").transpose(1, 2).flatten(0, 1)

    return {"causal-conv1d": with_gradients(forward, lambda i: (i[0], weight, bias)) if backward else lambda i: forward(i, None)}


def ssd(A, D, rows: int, backward: bool) -> dict:
    theirs = _find("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    if theirs is None:
        return {}

    def forward(inputs, leaves):
        x, dt, B, C, *rest = leaves or inputs
        batched = (v.unflatten(0, (rows, -1)) for v in (x, dt, B, C))
        x, dt, B, C = batched
        y = theirs(x, dt, rest[0] if rest else A, B, C, chunk_size=CHUNK, D=rest[1] if rest else D, return_final_states=not rest)
        return y.flatten(0, 1) if rest else (y[0].flatten(0, 1), y[1])

    run = with_gradients(forward, lambda i: (*i, A, D)) if backward else lambda i: forward(i, None)
    return {"mamba-ssm": run}


def scan(A, D, bias, rows: int, backward: bool) -> dict:
    """In their layout, time innermost, as transformers' model has it from the start: it is made once, and not timed."""
    theirs = _find("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    if theirs is None:
        return {}
    kept: dict[int, tuple] = {}

    def call(wide, maps, constants, **more):
        a, d, b = constants
        how = {"delta_bias": b.flatten(), "delta_softplus": True} | more
        return theirs(wide[0], wide[1], a.flatten(0, 1), *maps, d.flatten(), z=wide[2], **how)

    def laid_out(inputs):
        if (key := id(inputs[0])) not in kept:
            x, dt, z, B, C = inputs
            wide = [v.flatten(1).unflatten(0, (rows, -1)).transpose(1, 2).contiguous() for v in (x, dt, z)]
            kept[key] = (*wide, *(v.unflatten(0, (rows, -1)).permute(0, 2, 3, 1).contiguous() for v in (B, C)))
        return kept[key]

    def forward(inputs):
        given = laid_out(inputs)
        y, state = call(given[:3], given[3:], (A, D, bias), return_last_state=True)
        return _rows_first(y, A), state.reshape(rows, *A.shape)

    def both(inputs):
        leaves = leaves_of((*laid_out(inputs), A, D, bias))
        y = call(leaves[:3], leaves[3:5], leaves[5:])
        found = torch.autograd.grad(y, leaves, _their_weights(y.transpose(1, 2).shape, y.dtype, y.device))
        wide, maps = (
            [_rows_first(g, A) for g in (y.detach(), *found[:3])],
            [g.permute(0, 3, 1, 2).flatten(0, 1) for g in found[3:5]],
        )
        return [*wide, *maps, *found[5:]]

    return {"mamba-ssm": both if backward else forward}


def _rows_first(y_BCT, A):
    """As we have it, (tokens, heads, channels): a view for one sequence."""
    return y_BCT.transpose(1, 2).flatten(0, 1).unflatten(1, A.shape[:2])


@lru_cache(4)
def _their_weights(shape, dtype, device):
    return loss_weights(shape, dtype, device).transpose(1, 2).contiguous()


def mixer_norm(c: ZambaConfig, weight, backward: bool) -> dict:
    theirs = _find("mamba_ssm.ops.triton.layernorm_gated", "rmsnorm_fn")
    if theirs is None:
        return {}
    size = c.d_inner // c.n_groups

    def forward(inputs, leaves):
        y, z, w = leaves or (*inputs, weight)
        return theirs(y, w, None, z=z, eps=c.norm_eps, group_size=size, norm_before_gate=False)

    return {"mamba-ssm": with_gradients(forward, lambda i: (*i, weight)) if backward else lambda i: forward(i, None)}


def mamba2(c: ZambaConfig, parameters, rows: int, backward: bool) -> dict:
    """All of it as one function, which is what transformers trains with."""
    theirs = _find("mamba_ssm.ops.triton.ssd_combined", "mamba_split_conv1d_scan_combined")
    if theirs is None:
        return {}

    def forward(inputs, leaves):
        h, conv_weight, conv_bias, dt_bias, A_log, D, weight = leaves or (*inputs, *parameters)
        how = {"chunk_size": CHUNK, "rmsnorm_weight": weight, "rmsnorm_eps": c.norm_eps, "headdim": c.ssm_head_dim}
        A, how = -A_log.float().exp(), how | {"ngroups": c.n_groups, "norm_before_gate": False}
        return theirs(h.unflatten(0, (rows, -1)), conv_weight, conv_bias, dt_bias, A, D, **how).flatten(0, 1)

    return {"mamba-ssm": with_gradients(forward, lambda i: (*i, *parameters)) if backward else lambda i: forward(i, None)}


def mixer2(c: ZambaConfig, constants) -> dict:
    """causal-conv1d's update, then mamba-ssm's state update with the gate: two launches."""
    conv_update = _find("causal_conv1d", "causal_conv1d_update")
    state_update = _find("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")
    if conv_update is None or state_update is None:
        return {}
    weight, bias, dt_bias, A, D = constants
    H, P, N, G = c.n_ssm_heads, c.ssm_head_dim, c.d_state, c.n_groups
    wide = (dt_bias[:, None].expand(H, P), A[:, None, None].expand(H, P, N), D[:, None].expand(H, P))
    kept: dict[int, torch.Tensor] = {}

    def run(inputs):
        h, window, state = inputs
        z, xBC, dt = h.split((c.d_inner, c.conv_dim, H), 1)
        held = kept.get(id(window))
        if held is None:  # their window is channel-first and one longer; made once, as a model would keep it
            held = kept[id(window)] = F.pad(window.transpose(1, 2), (1, 0)).contiguous()
        mixed = conv_update(xBC, held, weight.to(h.dtype), bias.to(h.dtype), activation="silu")
        x, B, C = mixed.split((c.d_inner, G * N, G * N), 1)
        dt_bias, A, D = wide
        return state_update(
            state,
            x.unflatten(1, (H, P)),
            dt[:, :, None].expand(-1, -1, P),
            A,
            B.unflatten(1, (G, N)),
            C.unflatten(1, (G, N)),
            D,
            z=z.unflatten(1, (H, P)),
            dt_bias=dt_bias,
            dt_softplus=True,
        ).flatten(1)

    return {"causal-conv1d + mamba-ssm": run}


def mixer1(c: ZambaConfig, constants) -> dict:
    """causal-conv1d's update, two batched products, then mamba-ssm's state update head by head, as transformers does it."""
    conv_update = _find("causal_conv1d", "causal_conv1d_update")
    state_update = _find("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")
    if conv_update is None or state_update is None:
        return {}
    weight, bias, dt_bias, A, D = constants
    H, N, R = c.n_ssm_heads, c.d_state, c.dt_rank
    kept: dict[int, torch.Tensor] = {}

    def run(inputs):
        h, window, state, x_proj, dt_proj = inputs
        x, z = h.chunk(2, 1)
        held = kept.get(id(window))
        if held is None:
            held = kept[id(window)] = F.pad(window.transpose(1, 2), (1, 0)).contiguous()
        x = conv_update(x, held, weight.to(h.dtype), bias.to(h.dtype), activation="silu").unflatten(1, (H, -1))
        z = z.unflatten(1, (H, -1))
        low = x.transpose(0, 1) @ x_proj.transpose(1, 2)
        dt = low[..., :R] @ dt_proj.transpose(1, 2)
        B, C = low[..., R : R + N], low[..., R + N :]
        parts = [
            state_update(state[:, n], x[:, n], dt[n], A[n], B[n], C[n], D[n], z=z[:, n], dt_bias=dt_bias[n], dt_softplus=True)
            for n in range(H)
        ]
        return torch.cat(parts, 1)

    return {"causal-conv1d + mamba-ssm": run}


def prompt_attention(c: ZambaConfig, rows: int, backward: bool, joined: bool = False) -> dict:
    """torch's attention, whichever of its kernels it takes for this head size. ``joined``: of one tensor (T, 3, heads, d)."""

    def forward(inputs, leaves):
        given = leaves or inputs
        q, k, v = (t.unflatten(0, (rows, -1)).transpose(1, 2) for t in (given[0].unbind(1) if joined else given))
        return F.scaled_dot_product_attention(q, k, v, scale=c.attn_scale, is_causal=True).transpose(1, 2).flatten(0, 1)

    return {"torch SDPA": with_gradients(forward, lambda i: i) if backward else lambda i: forward(i, None)}


def decode_attention(c: ZambaConfig, rows: int, context: int, table) -> dict:
    """torch's attention over keys and values that lie in one stretch, the new ones already behind the others."""
    kept: dict[int, tuple] = {}

    def run(inputs):
        q, k, v, keys, values = inputs
        if id(keys) not in kept:  # made ready in the first call, which is a warm-up
            kept[id(keys)] = tuple(_stretch(pages, table, context, new) for pages, new in ((keys, k), (values, v)))
        whole_k, whole_v = kept[id(keys)]
        y = F.scaled_dot_product_attention(q.unsqueeze(2), whole_k, whole_v, scale=c.attn_scale)
        return y.squeeze(2)

    return {"torch SDPA, one stretch": run}


def _stretch(pages, table, context: int, new):
    """Pages (n, heads, PAGE, d) as one stretch (rows, heads, context + 1, d)."""
    whole = pages[table.long()].transpose(1, 2).flatten(2, 3)[:, :, : context + 1].contiguous()
    whole[:, :, context] = new
    return whole
