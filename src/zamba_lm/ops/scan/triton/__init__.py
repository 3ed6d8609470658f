"""The scan by Triton kernels: checks, the forward pass's launch and autograd's view of both passes."""

import torch

from zamba_lm.ops.gpu import launch, multiprocessors
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan.triton import configs
from zamba_lm.ops.scan.triton.backward import backward
from zamba_lm.ops.scan.triton.forward import forward_kernel
from zamba_lm.ops.scan.triton.layout import Inputs, spread
from zamba_lm.ops.scan.triton.tables import pieces

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def scan_triton(x, dt, A, B, C, D, packing: Packing, state=None, z=None, dt_bias=None, dt_limit=None, slots=None, in_place=False):
    for name, value in (("x", x), ("dt", dt), ("B", B), ("C", C), ("z", x if z is None else z)):
        if value.dtype not in DTYPES:
            raise TypeError(f"{name} is {value.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    if in_place:
        y, after, _ = forward(Inputs.of(x, dt, A, D, z, dt_bias, packing, dt_limit), B, C, state, False, slots, state)
        return y, after
    return _Scan.apply(x, dt, A, B, C, D, state, z, dt_bias, packing, dt_limit, torch.is_grad_enabled())


def forward(i: Inputs, B, C, state, keep: bool, slots=None, after=None):
    """(y, states after, states before every KEEP tokens of each sequence or None). after: where the states go, if not to a new
    tensor; slots: which entry of ``state`` and of it is a sequence's."""
    (_, H, P), N, S, device = i.x.shape, i.N, len(i.packing), i.x.device
    y, after = torch.empty(i.x.shape, dtype=i.x.dtype, device=device), i.A.new_empty(S, H, P, N) if after is None else after
    table, first = pieces(i.packing, configs.KEEP, device)
    kept = i.A.new_empty(len(table), H, P, N) if keep else after
    maps = spread(B, C, table, configs.KEEP)
    how = configs.forward(S * H * -(-P // 32), 4 * multiprocessors(device))
    launch(
        forward_kernel, (-(-P * how["SPLIT"] // 32), H, S), i.x, i.dt, i.z, maps, i.A, i.D, i.dt_bias,
        after if state is None else state.contiguous(), y, after, kept, i.packing.cu_seqlens(device), first,
        first if slots is None else slots, i.low, i.high,
        i.x.stride(1), i.dt.stride(1), i.z.stride(1), H=H, P=P, N=N, SXT=i.x.stride(0), SDT=i.dt.stride(0), SZT=i.z.stride(0),
        NP=maps.shape[-1] // 2, PIECE=configs.KEEP, KEEP=keep, GIVEN=state is not None, SLOTS=slots is not None, **i.flags, **how,
        num_warps=1, device=device,
    )  # fmt: skip
    return y, after, kept if keep else None


class _Scan(torch.autograd.Function):
    """Keeps the inputs and the state before every KEEP tokens."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, state, z, dt_bias, packing, dt_limit, differentiable):
        i = Inputs.of(x, dt, A, D, z, dt_bias, packing, dt_limit)
        keep = differentiable and any(ctx.needs_input_grad)
        y, after, kept = forward(i, B, C, state, keep)
        if keep:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, dt, A, B, C, D, z, dt_bias, kept)
            ctx.packing, ctx.dt_limit, ctx.given = packing, dt_limit, state is not None
        return y, after

    @staticmethod
    def backward(ctx, dy, dafter):
        x, dt, A, B, C, D, z, dt_bias, kept = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros_like(x, memory_format=torch.contiguous_format)
        i = Inputs.of(x, dt, A, D, z, dt_bias, ctx.packing, ctx.dt_limit)
        dx, ddt, dA, dB, dC, dD, dstate, dz, dbias = backward(i, kept, dy, dafter, B, C)
        return dx, ddt, dA, dB.to(B.dtype), dC.to(C.dtype), dD, dstate if ctx.given else None, dz, dbias, None, None, None
