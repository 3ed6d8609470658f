"""The scan by Triton kernels: checks, the forward pass's launch and autograd's view of both passes."""

import torch

from zamba_lm.ops.gpu import launch, multiprocessors
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan.triton import configs
from zamba_lm.ops.scan.triton.backward import backward
from zamba_lm.ops.scan.triton.forward import forward_kernel
from zamba_lm.ops.scan.triton.layout import Inputs, spread
from zamba_lm.ops.scan.triton.tables import pieces
from zamba_lm.ops.soon import soon

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def scan_triton(x, dt, A, B, C, D, packing: Packing, state=None, z=None, dt_bias=None, dt_limit=None, slots=None, in_place=False):
    for name, value in (("x", x), ("dt", dt), ("B", B), ("C", C), ("z", x if z is None else z)):
        if value.dtype not in DTYPES:
            raise TypeError(f"{name} is {value.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    if in_place:
        y, after, _ = forward(Inputs.of(x, dt, A, D, z, dt_bias, packing, dt_limit), B, C, state, 0, slots, state)
        return y, after
    return _Scan.apply(x, dt, A, B, C, D, state, z, dt_bias, packing, dt_limit, torch.is_grad_enabled())


def forward(i: Inputs, B, C, state, every: int, slots=None, after=None):
    """(y, states after, states before every ``every`` tokens of each sequence, (n, H, N, P), or None for 0). after: where the
    states go, if not to a new tensor; slots: which entry of ``state`` and of it is a sequence's."""
    (_, H, P), N, S, device = i.x.shape, i.N, len(i.packing), i.x.device
    y, after = torch.empty(i.x.shape, dtype=i.x.dtype, device=device), i.A.new_empty(S, H, P, N) if after is None else after
    table, first = pieces(i.packing, configs.PIECE, device)
    maps = spread(B, C, table, configs.PIECE)
    borders, first_kept = pieces(i.packing, every or configs.PIECE, device)
    kept = i.A.new_empty(len(borders), H, N, P) if every else after
    how = configs.forward(S * H * -(-P // 32), 4 * multiprocessors(device))
    launch(
        forward_kernel, (-(-P * how["SPLIT"] // 32), H, S), i.x, i.dt, i.z, maps, i.A, i.D, i.dt_bias,
        after if state is None else state.contiguous(), y, after, kept, i.packing.cu_seqlens(device), first, first_kept,
        first if slots is None else slots, i.low, i.high,
        i.x.stride(1), i.dt.stride(1), i.z.stride(1), H=H, P=P, N=N, SXT=i.x.stride(0), SDT=i.dt.stride(0), SZT=i.z.stride(0),
        NP=maps.shape[-1] // 2, PIECE=configs.PIECE, EVERY=every, GIVEN=state is not None, SLOTS=slots is not None,
        **i.flags, **how, num_warps=1, device=device,
    )  # fmt: skip
    return y, after, kept if every else None


class _Scan(torch.autograd.Function):
    """Keeps the inputs and some states: few, or all that the backward pass wants if it follows at once."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, state, z, dt_bias, packing, dt_limit, differentiable):
        i = Inputs.of(x, dt, A, D, z, dt_bias, packing, dt_limit)
        keep = differentiable and any(ctx.needs_input_grad)
        every = configs.TILE if soon() else configs.KEEP
        y, after, kept = forward(i, B, C, state, every if keep else 0)
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
        few = len(kept) == len(pieces(ctx.packing, configs.KEEP, kept.device)[0])  # not so where they were made again since
        dx, ddt, dA, dB, dC, dD, dstate, dz, dbias = backward(i, kept, configs.KEEP if few else configs.TILE, dy, dafter, B, C)
        return dx, ddt, dA, dB.to(B.dtype), dC.to(C.dtype), dD, dstate if ctx.given else None, dz, dbias, None, None, None
