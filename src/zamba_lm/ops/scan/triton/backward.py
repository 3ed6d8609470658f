"""Launches of the backward pass: states from the left, adjoints from the right, gradients in between."""

import torch

from zamba_lm.ops.gpu import launch, multiprocessors
from zamba_lm.ops.scan.triton import configs
from zamba_lm.ops.scan.triton.borders import adjoints_kernel, states_kernel
from zamba_lm.ops.scan.triton.gradient import gradient_kernel
from zamba_lm.ops.scan.triton.layout import Inputs, spread
from zamba_lm.ops.scan.triton.tables import pieces


def backward(i: Inputs, kept, every: int, dy, dafter, B, C) -> tuple:
    """Gradients of (x, dt, A, B, C, D, state, z, dt_bias), float32 but for those with a token axis. ``kept``: the states before
    every ``every`` tokens."""
    (T, H, P), N, device = i.x.shape, i.N, i.x.device
    dy = dy.contiguous()
    table, first_tile = pieces(i.packing, configs.TILE, device)
    maps = spread(B, C, table, configs.TILE)
    NP, n_tiles = maps.shape[-1] // 2, len(table)
    states, adjoints = kept, i.A.new_empty(n_tiles, H, N, P)
    if every > configs.TILE:
        states = torch.empty_like(adjoints)
        _states(i, maps, kept, every, states, first_tile)
    dbefore = i.A.new_empty(len(i.packing), H, P, N)
    _adjoints(i, maps, dy, dafter, dbefore, adjoints, first_tile)
    parts = configs.parts(n_tiles * H, P, 4 * multiprocessors(device))
    walk = -(-P // parts // 32) * 32
    parts = -(-P // walk)
    dx = torch.empty(T, H, P, dtype=i.x.dtype, device=device)
    ddt = torch.empty_like(i.dt)
    if ddt.stride(-1) != 1:
        ddt = torch.empty(T, H, P, dtype=i.dt.dtype, device=device)
    dz = torch.empty_like(dx, dtype=i.z.dtype) if i.gated else dx
    dmaps, dD = i.A.new_empty(parts, n_tiles * configs.TILE, H, 2 * NP), i.A.new_empty(2, n_tiles, H, P)
    launch(
        gradient_kernel, (parts, H, n_tiles), i.x, i.dt, i.z, dy, maps, i.A, i.D, i.dt_bias, states, adjoints, dx, ddt, dz,
        dmaps, dD[0], dD[1], table, i.low, i.high, i.x.stride(1), i.dt.stride(1), i.z.stride(1), ddt.stride(1), walk, n_tiles,
        H=H, P=P, N=N, SXT=i.x.stride(0), SDT=i.dt.stride(0), SZT=i.z.stride(0), SOT=ddt.stride(0), NP=NP,
        TILE=configs.TILE, **i.flags, num_warps=1, device=device, **configs.GRADIENT,
    )  # fmt: skip
    dA = adjoints.sum(0).transpose(1, 2)
    dD, dbias = dD.sum(1) if i.raw else (dD[0].sum(0), None)
    dmaps = dmaps.sum(0)
    if n_tiles * configs.TILE != T:  # without what fills up the last tile of each sequence
        dmaps = dmaps[_places(table, T)]
    return dx, ddt, dA, dmaps[..., :N], dmaps[..., NP : NP + N], dD, dbefore, dz if i.gated else None, dbias


def _states(i: Inputs, maps, kept, every: int, states, first_tile):
    """Fill ``states``, those before every tile, from those before every ``every`` tokens."""
    (_, H, P), table = i.x.shape, pieces(i.packing, every, i.x.device)[0]
    launch(
        states_kernel, (-(-P // 32), H, len(table)), i.x, i.dt, maps, i.A, i.dt_bias, kept, states, table,
        i.packing.cu_seqlens(i.x.device), first_tile, i.low, i.high, i.x.stride(1), i.dt.stride(1), KEEP=every,
        SXT=i.x.stride(0), SDT=i.dt.stride(0), RAW=i.flags["RAW"], LIMITED=i.flags["LIMITED"], **_shape(i, maps),
    )  # fmt: skip


def _adjoints(i: Inputs, maps, dy, dafter, dbefore, adjoints, first_tile):
    """Fill ``adjoints``, those after every tile, and ``dbefore``."""
    (_, H, P), SPLIT = i.x.shape, configs.ADJOINTS["SPLIT"]
    launch(
        adjoints_kernel, (-(-P * SPLIT // 32), H, len(i.packing)), dy, i.dt, i.z, maps, i.A, i.dt_bias,
        dbefore if dafter is None else dafter.contiguous(), dbefore, adjoints, i.packing.cu_seqlens(i.x.device), first_tile,
        i.low, i.high, i.dt.stride(1), i.z.stride(1), SDT=i.dt.stride(0), SZT=i.z.stride(0), GIVEN=dafter is not None,
        **configs.ADJOINTS, **i.flags, **_shape(i, maps),
    )  # fmt: skip


def _shape(i: Inputs, maps) -> dict:
    shape = {"H": i.x.shape[1], "P": i.x.shape[2], "N": i.N, "NP": maps.shape[-1] // 2, "TILE": configs.TILE}
    return shape | {"num_warps": 1, "device": i.x.device}


def _places(table, T: int):
    """Where each token stands among tokens laid tile by tile: T is known, so nothing waits for the device."""
    start = table[:, 1].long()
    token = torch.arange(T, device=table.device)
    tile = torch.searchsorted(start, token, right=True) - 1
    return tile * configs.TILE + token - start[tile]
