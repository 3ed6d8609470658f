"""Gradients of attention on Hopper, for heads of two powers of two channels: three groups of warps, as in ``trio.py``.

    P = exp(s - lse)    dP = dy v^T    dS = P (dP - delta)    delta = sum_d y dy
    dv = P^T dy         dk = dS^T q    dq = dS k              each times the scale where due

One kernel owns tiles of keys and one tiles of queries; both make the weights anew, so that nothing is added up in an order that
chance decides. A program has 128 keys or queries, two groups of warps have 64 each, and a third fetches blocks of the others.
The kernel of keys makes its scores transposed: weights lie in registers just as the product with the blocks' rows reads them.

Two sums of 64 x 160 numbers leave a thread of the kernel of keys 80 registers. So what does not change is said in a way that the
compiler cannot see through (``following_zero``): it would keep the addresses of every product in registers.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from zamba_lm.ops.attention.triton.trio import GROUP, REGISTERS, scores, weights

PIECE = gl.constexpr(16)  # channels that are turned at a time


def numbers_of(x) -> TensorDescriptor:
    """What the copy engine reads of float32 numbers laid end to end: as many as a group has rows."""
    return TensorDescriptor(x, [x.numel()], [1], [GROUP.value], gl.NVMMASharedLayout(0, 32, 1))


@gluon.jit(do_not_specialize=["blocks"])
def keys_kernel(
    q_a, q_b, k_a, k_b, v_a, v_b, dy_a, dy_b, numbers, tiles, gradients, cos, sin, blocks, scale, log_scale,
    HEADS: gl.constexpr, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, STAGES: gl.constexpr, TURN: gl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys of a head. Sources are descriptors of (rows, A) and (rows, B) in rows of all heads; ``numbers``
    of what ``statistics_kernel`` wrote; a row of ``tiles`` is that of ``key_tiles``."""
    tile = tiles + gl.program_id(0) * 4
    start, block, steps = gl.load(tile), gl.load(tile + 2), gl.load(tile + 3)
    dtype: gl.constexpr = gradients.dtype.element_ty
    own = rooms_of(dtype, k_a, k_b, 2, GROUP, A, B) + rooms_of(dtype, v_a, v_b, 2, GROUP, A, B)
    others = rooms_of(dtype, q_a, q_b, STAGES, GROUP, A, B) + rooms_of(dtype, dy_a, dy_b, STAGES, GROUP, A, B)
    lse = gl.allocate_shared_memory(gl.float32, [STAGES, GROUP], numbers.layout)
    delta = gl.allocate_shared_memory(gl.float32, [STAGES, GROUP], numbers.layout)
    there, free = barriers(1 + 2 * STAGES, 2 * STAGES)
    row = (gl.program_id(1) * blocks + block) * 2 * GROUP
    sources = (k_a, k_b, v_a, v_b, q_a, q_b, dy_a, dy_b, numbers)
    to = (tiles, gradients, cos, sin, steps, scale, log_scale)
    gl.warp_specialize(
        [
            (keys_multiply, (0, own, others, lse, delta, there, free, to, HEADS, D, A, B, STAGES, TURN)),
            (keys_multiply, (1, own, others, lse, delta, there, free, to, HEADS, D, A, B, STAGES, TURN)),
            (keys_fetch, (sources, own, others, lse, delta, there, free, start, steps, row, D, A, B, STAGES)),
        ],
        [4, 1],
        REGISTERS,
    )  # fmt: skip


@gluon.jit
def rooms_of(dtype: gl.constexpr, a, b, COUNT: gl.constexpr, ROWS: gl.constexpr, A: gl.constexpr, B: gl.constexpr):
    """Shared memory for COUNT tiles, each in two pieces."""
    return (
        gl.allocate_shared_memory(dtype, [COUNT, ROWS, A], a.layout),
        gl.allocate_shared_memory(dtype, [COUNT, ROWS, B], b.layout),
    )


@gluon.jit
def barriers(THERE: gl.constexpr, FREE: gl.constexpr):
    there = gl.allocate_shared_memory(gl.int64, [THERE, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [FREE, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(THERE):
        mbarrier.init(there.index(i), count=1)
    for i in gl.static_range(FREE):
        mbarrier.init(free.index(i), count=2)
    fence_async_shared()
    return there, free


@gluon.jit
def copy(a, b, row, column, barrier, to_a, to_b, A: gl.constexpr):
    tma.async_copy_global_to_shared(a, [row, column], barrier, to_a)
    tma.async_copy_global_to_shared(b, [row, column + A], barrier, to_b)


@gluon.jit
def fetch_own(x_a, x_b, y_a, y_b, start, column, barrier, own, A: gl.constexpr, B: gl.constexpr):
    """What both groups hold all the time: rows of two tensors."""
    mbarrier.expect(barrier, 4 * GROUP * (A + B) * 2)
    for group in gl.static_range(2):
        at = start + GROUP * group
        copy(x_a, x_b, at, column, barrier, own[0].index(group), own[1].index(group), A)
        copy(y_a, y_b, at, column, barrier, own[2].index(group), own[3].index(group), A)


@gluon.jit
def keys_fetch(
    sources, own, others, lse, delta, there, free, start, steps, row,
    D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Keys and values once, then blocks of queries from the newest to the oldest."""
    k_a, k_b, v_a, v_b, q_a, q_b, dy_a, dy_b, numbers = sources
    column = gl.program_id(1) * D
    fetch_own(k_a, k_b, v_a, v_b, start, column, there.index(0), own, A, B)
    for i in range(steps):
        block, room, phase = steps - 1 - i, i % STAGES, (i // STAGES + 1) & 1
        at, number = start + block * GROUP, row + block * 2 * GROUP
        mbarrier.wait(free.index(room), phase)
        barrier = there.index(1 + room)
        mbarrier.expect(barrier, GROUP * (A + B) * 2 + GROUP * 4)
        copy(q_a, q_b, at, column, barrier, others[0].index(room), others[1].index(room), A)
        tma.async_copy_global_to_shared(numbers, [number], barrier, lse.index(room))
        mbarrier.wait(free.index(STAGES + room), phase)
        barrier = there.index(1 + STAGES + room)
        mbarrier.expect(barrier, GROUP * (A + B) * 2 + GROUP * 4)
        copy(dy_a, dy_b, at, column, barrier, others[2].index(room), others[3].index(room), A)
        tma.async_copy_global_to_shared(numbers, [number + GROUP], barrier, delta.index(room))


@gluon.jit
def keys_multiply(
    group: gl.constexpr, own, others, lse, delta, there, free, to,
    HEADS: gl.constexpr, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, STAGES: gl.constexpr, TURN: gl.constexpr,
):  # fmt: skip
    """dk and dv of a group's keys. Only the last block that it takes, its own queries, has some that see not all of them."""
    S: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, GROUP, 16])
    OA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, A, 16])
    OB: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, B, 16])
    tiles, gradients, cos, sin, steps, scale, log_scale = to
    rooms = (own, others, lse, delta, there, free)
    sums = (gl.zeros([GROUP, A], gl.float32, OA), gl.zeros([GROUP, B], gl.float32, OB),
            gl.zeros([GROUP, A], gl.float32, OA), gl.zeros([GROUP, B], gl.float32, OB))  # fmt: skip
    mbarrier.wait(there.index(0), 0)
    final = gl.minimum(group, steps - 1)
    for i in range(steps - 1 - final):
        sums = keys_step(group, rooms, sums, i, 0, log_scale, False, S, OA, OB, STAGES)
    sums = keys_step(group, rooms, sums, steps - 1 - final, final, log_scale, True, S, OA, OB, STAGES)
    tile = tiles + gl.program_id(0) * 4
    row, count = gl.load(tile) + GROUP * group, gl.load(tile + 1) - GROUP * group
    to_k = gradients + (HEADS + gl.program_id(1)) * D
    ka, kb, va, vb = own[0].index(group), own[1].index(group), own[2].index(group), own[3].index(group)
    store(to_k, sums[0] * scale, sums[1] * scale, ka, kb, row, count, cos, sin, HEADS, D, A, B, TURN)
    store(to_k + HEADS * D, sums[2], sums[3], va, vb, row, count, cos, sin, HEADS, D, A, B, False)


@gluon.jit
def following_zero(i):
    """0, as no loop gets beyond 2^24 blocks."""
    return i >> 24


@gluon.jit
def keys_step(
    group: gl.constexpr, rooms, sums, i, block, log_scale,
    MASKED: gl.constexpr, S: gl.constexpr, OA: gl.constexpr, OB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """What step i's queries add. One product at a time: the other group's run under this one's weights."""
    own, others, lses, deltas, there, free = rooms
    dka, dkb, dva, dvb = sums
    mine, room, phase = group + following_zero(i), i % STAGES, i // STAGES & 1
    qa, qb, ya, yb = others[0].index(room), others[1].index(room), others[2].index(room), others[3].index(room)
    mbarrier.wait(there.index(1 + room), phase)
    s = warpgroup_mma_wait(0, deps=(scores(own[0].index(mine), own[1].index(mine), qa, qb, GROUP, S),))
    p = gl.exp2(s * log_scale - lses.index(room).load(gl.SliceLayout(0, S))[None, :])
    if MASKED:
        n, m = gl.arange(0, GROUP, gl.SliceLayout(1, S)), gl.arange(0, GROUP, gl.SliceLayout(0, S))
        p = gl.where(n[:, None] + group * GROUP <= block * GROUP + m[None, :], p, 0.0)
    p = p.to(qa.dtype)
    mbarrier.wait(there.index(1 + STAGES + room), phase)
    pa, pb = weights(p, qa.dtype, OA), weights(p, qa.dtype, OB)
    dva, dvb = warpgroup_mma(pa, ya, dva, is_async=True), warpgroup_mma(pb, yb, dvb, is_async=True)
    dva, dvb, pa, pb = warpgroup_mma_wait(0, deps=(dva, dvb, pa, pb))
    dp = warpgroup_mma_wait(0, deps=(scores(own[2].index(mine), own[3].index(mine), ya, yb, GROUP, S),))
    mbarrier.arrive(free.index(STAGES + room))
    ds = p.to(gl.float32) * (dp - deltas.index(room).load(gl.SliceLayout(0, S))[None, :])
    da, db = weights(ds, qa.dtype, OA), weights(ds, qa.dtype, OB)
    dka, dkb = warpgroup_mma(da, qa, dka, is_async=True), warpgroup_mma(db, qb, dkb, is_async=True)
    dka, dkb, da, db = warpgroup_mma_wait(0, deps=(dka, dkb, da, db))
    mbarrier.arrive(free.index(room))
    return dka, dkb, dva, dvb


@gluon.jit
def store(
    to, a, b, a_s, b_s, row, count, cos, sin,
    HEADS: gl.constexpr, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, TURN: gl.constexpr,
):  # fmt: skip
    """A group's rows of a gradient (T, 3, HEADS, D), at ``to`` for token 0, from ``row`` on; turned back by their angles. They go
    by way of a_s and b_s, which the group has done with: so a thread gets channels and their partners, and writes whole lines."""
    F: gl.constexpr = D // 2
    lanes: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0])
    near, far = spread(a, a_s, A), spread(b, b_s, B)
    gl.thread_barrier()
    n = gl.arange(0, GROUP, gl.SliceLayout(1, lanes))[:, None]
    ok, at = n < count, (row + n).to(gl.int64)
    for first in gl.static_range(0, F, PIECE):
        f = first + gl.arange(0, PIECE, gl.SliceLayout(0, lanes))[None, :]
        x, y = piece(near, far, first, A).load(lanes), piece(near, far, F + first, A).load(lanes)
        if TURN:
            c, s = gl.load(cos + at * F + f, mask=ok, other=0.0), gl.load(sin + at * F + f, mask=ok, other=0.0)
            x, y = x.to(gl.float32), y.to(gl.float32)
            x, y = (x * c + y * s).to(a_s.dtype), (y * c - x * s).to(a_s.dtype)
        gl.store(to + at * (3 * HEADS * D) + f, x, mask=ok)
        gl.store(to + at * (3 * HEADS * D) + F + f, y, mask=ok)


@gluon.jit
def spread(x, x_s, WIDE: gl.constexpr):
    """x laid out in pieces of PIECE channels."""
    whole: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    to = x_s._reinterpret(x_s.dtype, [WIDE // PIECE, GROUP, PIECE], whole)
    to.store(x.to(x_s.dtype).reshape([GROUP, WIDE // PIECE, PIECE]).permute([1, 0, 2]))
    return x_s._reinterpret(x_s.dtype, [WIDE // PIECE, GROUP, PIECE], plain)


@gluon.jit
def piece(near, far, channel: gl.constexpr, A: gl.constexpr):
    return near.index(channel // PIECE) if channel < A else far.index((channel - A) // PIECE)
