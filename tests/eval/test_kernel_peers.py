"""What we hand to mamba-ssm and causal-conv1d is laid out as they want it: stand-ins with their signatures give our answers."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from tests.model.tiny import CONFIGS
from zamba_lm.eval.bench.kernels import Plan, kernels
from zamba_lm.eval.bench.roof import Roof


def causal_conv1d_fn(x, weight, bias=None, activation=None):
    """x (batch, dim, length), weight (dim, width)."""
    y = F.conv1d(x.float(), weight.float()[:, None], bias.float(), padding=weight.shape[1] - 1, groups=len(weight))
    return F.silu(y[..., : x.shape[-1]]).to(x.dtype)


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None):
    """x (batch, dim), conv_state (batch, dim, width), updated in place."""
    conv_state.copy_(torch.cat([conv_state[..., 1:], x[..., None].to(conv_state.dtype)], -1))
    return F.silu((conv_state.float() * weight.float()).sum(-1) + bias.float()).to(x.dtype)


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """state (batch, nheads, dim, dstate) or without heads, updated in place; B, C (batch, ngroups, dstate) or (batch, dstate)."""
    if headless := state.dim() == 3:
        state, x, dt, A, B, C, D, z, dt_bias = (
            state[:, None], x[:, None], dt[:, None], A[None], B[:, None], C[:, None], D[None], z[:, None], dt_bias[None],
        )  # fmt: skip
    assert dt_softplus and dt.shape == x.shape and D.shape == dt_bias.shape == x.shape[1:] and A.shape == state.shape[1:]
    dt = F.softplus(dt.float() + dt_bias)
    B, C = (v.float().repeat_interleave(state.shape[1] // v.shape[1], 1) for v in (B, C))
    state.copy_(state * (dt[..., None] * A).exp() + (dt * x.float())[..., None] * B[:, :, None])
    y = ((state * C[:, :, None]).sum(-1) + x.float() * D) * F.silu(z.float())
    return (y[:, 0] if headless else y).to(x.dtype)


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, return_final_states=False):
    """x (batch, length, nheads, headdim), dt (batch, length, nheads), B, C (batch, length, ngroups, dstate)."""
    heads = x.shape[2]
    B, C = (v.float().repeat_interleave(heads // v.shape[2], 2) for v in (B, C))
    state, out = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[-1]), []
    for t in range(x.shape[1]):
        add = (dt[:, t, :, None] * x[:, t].float())[..., None] * B[:, t, :, None]
        state = state * (dt[:, t] * A).exp()[..., None, None] + add
        out.append((state * C[:, t, :, None]).sum(-1) + x[:, t].float() * D[:, None])
    y = torch.stack(out, 1).to(x.dtype)
    return (y, state) if return_final_states else y


def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=False, return_last_state=False):
    """u, delta, z (batch, dim, length), A (dim, dstate), B, C (batch, ngroups, dstate, length)."""
    assert delta_softplus
    delta = F.softplus(delta.float() + delta_bias[:, None])
    B, C = (v.float().repeat_interleave(u.shape[1] // v.shape[1], 1) for v in (B, C))
    state, out = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        state = state * (delta[..., t, None] * A).exp() + (delta[..., t] * u[..., t].float())[..., None] * B[..., t]
        out.append((state * C[..., t]).sum(-1) + u[..., t].float() * D)
    y = (torch.stack(out, -1) * F.silu(z.float())).to(u.dtype)
    return (y, state) if return_last_state else y


def rmsnorm_fn(x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True):
    assert not norm_before_gate and bias is None
    gated = (x.float() * F.silu(z.float())).unflatten(-1, (-1, group_size))
    return (F.rms_norm(gated, (group_size,), eps=eps).flatten(-2) * weight).to(x.dtype)


def mamba_split_conv1d_scan_combined(
    zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, rmsnorm_weight, rmsnorm_eps, headdim, ngroups, norm_before_gate
):
    """zxbcdt (batch, length, 2 dim + 2 ngroups dstate + nheads)."""
    C, (H,) = len(conv1d_weight), D.shape
    z, xBC, dt = zxbcdt.split((H * headdim, C, H), -1)
    xBC = causal_conv1d_fn(xBC.transpose(1, 2), conv1d_weight, conv1d_bias).transpose(1, 2)
    x, B, C = xBC.split((H * headdim, (C - H * headdim) // 2, (C - H * headdim) // 2), -1)
    x, B, C = x.unflatten(-1, (H, headdim)), B.unflatten(-1, (ngroups, -1)), C.unflatten(-1, (ngroups, -1))
    y = mamba_chunk_scan_combined(x, F.softplus(dt + dt_bias), A, B, C, chunk_size, D)
    group = H * headdim // ngroups
    return rmsnorm_fn(y.flatten(-2), rmsnorm_weight, None, z, rmsnorm_eps, group, norm_before_gate)


MODULES = {
    "causal_conv1d": (causal_conv1d_fn, causal_conv1d_update),
    "mamba_ssm": (),
    "mamba_ssm.ops": (),
    "mamba_ssm.ops.selective_scan_interface": (selective_scan_fn,),
    "mamba_ssm.ops.triton": (),
    "mamba_ssm.ops.triton.ssd_combined": (mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined),
    "mamba_ssm.ops.triton.selective_state_update": (selective_state_update,),
    "mamba_ssm.ops.triton.layernorm_gated": (rmsnorm_fn,),
}
OPS = {
    "zamba": {"conv", "scan", "mamba1_step"},
    "zamba2, everything": {"conv", "ssd", "mamba2_step", "gated_norm", "mamba2"},
}


@pytest.fixture
def installed(monkeypatch):
    for name, functions in MODULES.items():
        module = ModuleType(name)
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", OPS)
def test_others_compute_what_we_compute(name, installed):
    roof = Roof(1e9, 1e10, 1, 1, "float32")
    plan = Plan(
        config=CONFIGS[name], dtype="float32", device=torch.device("cpu"), roof=roof, batches=(2,), contexts=(9,), repeats=1,
        ops=tuple(OPS[name]),
    )  # fmt: skip
    rows = [row for row in kernels(plan) if not row.ours]
    assert {row.op for row in rows if "mamba-ssm" in row.side or "causal-conv1d" in row.side} == OPS[name]
    assert [(row.kernel, row.note) for row in rows if row.seconds is None] == []
    assert {row.kernel for row in rows} >= {f"{op}, forward + backward" for op in OPS[name] & {"scan", "ssd"}}
