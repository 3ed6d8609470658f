"""The gradient of attention's queries on Hopper, for heads of two powers of two channels: the other half of ``trio_keys.py``.

A program has 128 queries, two groups of warps have 64 each, and a third fetches blocks of 128 keys and values. Keys are needed
twice, for the weights and, as the last thing, for the gradient, so there is room for two blocks of them and for one of values.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from zamba_lm.ops.attention.triton.trio import GROUP, REGISTERS, scores, weights
from zamba_lm.ops.attention.triton.trio_keys import barriers, copy, fetch_own, following_zero, rooms_of, store

KEYS = gl.constexpr(128)  # of a block
STAGES = gl.constexpr(2)  # blocks of keys on the way


@gluon.jit(do_not_specialize=["blocks"])
def queries_kernel(
    q_a, q_b, k_a, k_b, v_a, v_b, dy_a, dy_b, numbers, tiles, gradients, cos, sin, blocks, scale, log_scale,
    HEADS: gl.constexpr, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, TURN: gl.constexpr,
):  # fmt: skip
    """dq of a tile of queries of a head. Sources as of ``keys_kernel``, but for ``numbers``, a pointer; ``tiles`` as of a
    prefill."""
    head, tile = gl.program_id(1), tiles + gl.program_id(0) * 4
    sequence, start, count, position = gl.load(tile), gl.load(tile + 1), gl.load(tile + 2), gl.load(tile + 3)
    dtype: gl.constexpr = gradients.dtype.element_ty
    own = rooms_of(dtype, q_a, q_b, 2, GROUP, A, B) + rooms_of(dtype, dy_a, dy_b, 2, GROUP, A, B)
    keys, values = rooms_of(dtype, k_a, k_b, STAGES, KEYS, A, B), rooms_of(dtype, v_a, v_b, 1, KEYS, A, B)
    there, free = barriers(2 + STAGES, 1 + STAGES)
    block = (start - position) // GROUP + sequence + position // GROUP
    steps = gl.cdiv(position + count, KEYS)
    sources = (q_a, q_b, dy_a, dy_b, k_a, k_b, v_a, v_b)
    to = (numbers + (head * blocks + block) * 2 * GROUP, tiles, gradients, cos, sin, steps, scale, log_scale)
    gl.warp_specialize(
        [
            (queries_multiply, (0, own, keys, values, there, free, to, HEADS, D, A, B, TURN)),
            (queries_multiply, (1, own, keys, values, there, free, to, HEADS, D, A, B, TURN)),
            (queries_fetch, (sources, own, keys, values, there, free, start, start - position, steps, D, A, B)),
        ],
        [4, 1],
        REGISTERS,
    )


@gluon.jit
def queries_fetch(
    sources, own, keys, values, there, free, start, first, steps, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr
):
    """Queries and their gradients once, then blocks of keys from the oldest to the newest."""
    q_a, q_b, dy_a, dy_b, k_a, k_b, v_a, v_b = sources
    column = gl.program_id(1) * D
    fetch_own(q_a, q_b, dy_a, dy_b, start, column, there.index(0), own, A, B)
    for i in range(steps):
        at, room = first + i * KEYS, i % STAGES
        mbarrier.wait(free.index(1 + room), (i // STAGES + 1) & 1)
        mbarrier.expect(there.index(2 + room), KEYS * (A + B) * 2)
        copy(k_a, k_b, at, column, there.index(2 + room), keys[0].index(room), keys[1].index(room), A)
        mbarrier.wait(free.index(0), (i + 1) & 1)
        mbarrier.expect(there.index(1), KEYS * (A + B) * 2)
        copy(v_a, v_b, at, column, there.index(1), values[0].index(0), values[1].index(0), A)


@gluon.jit
def queries_multiply(
    group: gl.constexpr, own, keys, values, there, free, to,
    HEADS: gl.constexpr, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, TURN: gl.constexpr,
):  # fmt: skip
    """dq of a group's queries. Only of the last block some keys are not seen by all of them."""
    S: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16])
    OA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, A, 16])
    OB: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, B, 16])
    numbers, tiles, gradients, cos, sin, steps, scale, log_scale = to
    tile = tiles + gl.program_id(0) * 4
    row, count = gl.load(tile + 1) + GROUP * group, gl.load(tile + 2) - GROUP * group
    at = numbers + 2 * GROUP * group + gl.arange(0, GROUP, gl.SliceLayout(1, S))
    logs = gl.load(at, mask=count > 0, other=float("inf"))  # behind a sequence's last block another's may begin
    delta = gl.load(at + GROUP, mask=count > 0, other=0.0)
    rooms = (own, keys, values, there, free)
    a, b = gl.zeros([GROUP, A], gl.float32, OA), gl.zeros([GROUP, B], gl.float32, OB)
    mbarrier.wait(there.index(0), 0)
    for i in range(steps - 1):
        a, b = queries_step(group, rooms, a, b, logs, delta, i, log_scale, False, S, OA, OB)
    a, b = queries_step(group, rooms, a, b, logs, delta, steps - 1, log_scale, True, S, OA, OB)
    to_q = gradients + gl.program_id(1) * D
    qa, qb = own[0].index(group), own[1].index(group)
    store(to_q, a * scale, b * scale, qa, qb, row, count, cos, sin, HEADS, D, A, B, TURN)


@gluon.jit
def queries_step(
    group: gl.constexpr, rooms, a, b, logs, delta, i, log_scale,
    MASKED: gl.constexpr, S: gl.constexpr, OA: gl.constexpr, OB: gl.constexpr,
):  # fmt: skip
    """What block i of keys adds."""
    own, keys, values, there, free = rooms
    mine, room = group + following_zero(i), i % STAGES
    ka, kb, va, vb = keys[0].index(room), keys[1].index(room), values[0].index(0), values[1].index(0)
    mbarrier.wait(there.index(2 + room), i // STAGES & 1)
    s = scores(own[0].index(mine), own[1].index(mine), ka, kb, KEYS, S)
    mbarrier.wait(there.index(1), i & 1)
    dp = scores(own[2].index(mine), own[3].index(mine), va, vb, KEYS, S)
    s = warpgroup_mma_wait(2, deps=(s,))
    p = gl.exp2(s * log_scale - logs[:, None])
    if MASKED:
        n, m = gl.arange(0, KEYS, gl.SliceLayout(0, S)), gl.arange(0, GROUP, gl.SliceLayout(1, S))
        p = gl.where(n[None, :] <= m[:, None] + group * GROUP, p, 0.0)
    dp = warpgroup_mma_wait(0, deps=(dp,))
    mbarrier.arrive(free.index(0))
    ds = p * (dp - delta[:, None])
    da, db = weights(ds, ka.dtype, OA), weights(ds, ka.dtype, OB)
    a, b = warpgroup_mma(da, ka, a, is_async=True), warpgroup_mma(db, kb, b, is_async=True)
    a, b, da, db = warpgroup_mma_wait(0, deps=(a, b, da, db))
    mbarrier.arrive(free.index(1 + room))
    return a, b
