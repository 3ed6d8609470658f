"""Attention of many new tokens over pages on Hopper, for heads of two powers of two channels: three groups of warps.

One group fetches keys and values through the copy engine. Two others have 64 queries each; a group's scores of one block are made
while the values of the block before are added, and what one group computes of its softmax, the other hides behind its products.
Blocks come from the newest to the oldest, so that the masked ones are first.

Written in Gluon, the layer below Triton that says which warps do what; there is no interpreter for it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

GROUP = gl.constexpr(64)  # queries of a group of warps; a program has two
REGISTERS = gl.constexpr((240, 24))  # a thread, of who multiplies and who fetches


def tiles_of(x, shape: tuple[int, int], step: int, rows: int, wide: int) -> TensorDescriptor:
    """What the copy engine reads: tiles (rows, wide) of ``shape`` numbers that begin at x, rows ``step`` apart."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, wide], gl.float16)  # any 16 bits
    return TensorDescriptor(x, list(shape), [step, 1], [rows, wide], layout)


@gluon.jit(do_not_specialize=["n_tiles", "T", "pages_s"])
def trio_kernel(
    q_a, q_b, k_a, k_b, v_a, v_b, pages, past, tiles, y, lse, n_tiles, T, pages_s, PAGE, scale,
    HEADS: gl.constexpr, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    PAGED: gl.constexpr, LSE: gl.constexpr,
):  # fmt: skip
    """A program: a tile of queries of a head. Sources are descriptors of (rows, A) and (rows, B): queries in rows of all heads,
    keys and values in rows of a head, page by page, or packed, in rows of all heads. ``lse``: log2 of each query's sum."""
    head = gl.program_id(0) // n_tiles
    tile = tiles + (gl.program_id(0) % n_tiles) * 4
    sequence, start, count, position = gl.load(tile), gl.load(tile + 1), gl.load(tile + 2), gl.load(tile + 3)
    first = start - position
    if PAGED:
        position += gl.where(count > 0, gl.load(past + sequence), 0)  # a row of zeros is no tile
    blocks = gl.maximum(gl.cdiv(position + count, BN), 1)
    dtype: gl.constexpr = y.dtype.element_ty
    qa_s = gl.allocate_shared_memory(dtype, [2, GROUP, A], q_a.layout)
    qb_s = gl.allocate_shared_memory(dtype, [2, GROUP, B], q_b.layout)
    ka_s = gl.allocate_shared_memory(dtype, [STAGES, BN, A], k_a.layout)
    kb_s = gl.allocate_shared_memory(dtype, [STAGES, BN, B], k_b.layout)
    va_s = gl.allocate_shared_memory(dtype, [STAGES, BN, A], v_a.layout)
    vb_s = gl.allocate_shared_memory(dtype, [STAGES, BN, B], v_b.layout)
    there = gl.allocate_shared_memory(gl.int64, [1 + 2 * STAGES, 1], mbarrier.MBarrierLayout())  # queries, keys, values
    free = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())  # rooms of keys, of values
    for i in gl.static_range(1 + 2 * STAGES):
        mbarrier.init(there.index(i), count=1)
    for i in gl.static_range(2 * STAGES):
        mbarrier.init(free.index(i), count=2)
    fence_async_shared()
    table = pages + sequence * pages_s
    gl.warp_specialize(
        [
            (multiply, (0, qa_s, qb_s, ka_s, kb_s, va_s, vb_s, there, free, y, lse, start, count, position, blocks, head, scale,
                        T, HEADS, D, A, B, BN, STAGES, LSE)),
            (multiply, (1, qa_s, qb_s, ka_s, kb_s, va_s, vb_s, there, free, y, lse, start, count, position, blocks, head, scale,
                        T, HEADS, D, A, B, BN, STAGES, LSE)),
            (fetch, (q_a, q_b, k_a, k_b, v_a, v_b, qa_s, qb_s, ka_s, kb_s, va_s, vb_s, there, free, start, first, table, blocks,
                     head, PAGE, HEADS, D, A, B, BN, STAGES, PAGED)),
        ],
        [4, 1],
        REGISTERS,
    )  # fmt: skip


@gluon.jit
def fetch(
    q_a, q_b, k_a, k_b, v_a, v_b, qa_s, qb_s, ka_s, kb_s, va_s, vb_s, there, free, start, first, table, blocks, head,
    PAGE, HEADS: gl.constexpr, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    PAGED: gl.constexpr,
):  # fmt: skip
    """Queries once, then a block after the other into whichever room is free."""
    SIZE: gl.constexpr = BN * (A + B) * 2  # bytes
    mbarrier.expect(there.index(0), 2 * GROUP * (A + B) * 2)
    for group in gl.static_range(2):
        tma.async_copy_global_to_shared(q_a, [start + GROUP * group, head * D], there.index(0), qa_s.index(group))
        tma.async_copy_global_to_shared(q_b, [start + GROUP * group, head * D + A], there.index(0), qb_s.index(group))
    room, phase = 0, 1
    for i in range(blocks):
        at = (blocks - 1 - i) * BN
        if PAGED:
            row, column = (gl.load(table + at // PAGE) * HEADS + head) * PAGE + at % PAGE, 0
        else:
            row, column = first + at, head * D
        mbarrier.wait(free.index(room), phase)
        has_keys = there.index(1 + room)
        mbarrier.expect(has_keys, SIZE)
        tma.async_copy_global_to_shared(k_a, [row, column], has_keys, ka_s.index(room))
        tma.async_copy_global_to_shared(k_b, [row, column + A], has_keys, kb_s.index(room))
        mbarrier.wait(free.index(STAGES + room), phase)
        has_values = there.index(1 + STAGES + room)
        mbarrier.expect(has_values, SIZE)
        tma.async_copy_global_to_shared(v_a, [row, column], has_values, va_s.index(room))
        tma.async_copy_global_to_shared(v_b, [row, column + A], has_values, vb_s.index(room))
        room, phase = following(room, phase, STAGES)


@gluon.jit
def following(room, phase, STAGES: gl.constexpr):
    last = room == STAGES - 1
    return gl.where(last, 0, room + 1), gl.where(last, phase ^ 1, phase)


@gluon.jit
def multiply(
    group: gl.constexpr, qa_s, qb_s, ka_s, kb_s, va_s, vb_s, there, free, y, lse, start, count, position, blocks, head, scale,
    T, HEADS: gl.constexpr, D: gl.constexpr, A: gl.constexpr, B: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    LSE: gl.constexpr,
):  # fmt: skip
    """The softmax of a group's queries over all blocks, and what it makes of the values."""
    S: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BN, 16])
    OA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, A, 16])
    OB: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, B, 16])
    queries = position + GROUP * group + gl.arange(0, GROUP, gl.SliceLayout(1, S))
    qa, qb = qa_s.index(group), qb_s.index(group)
    oa, ob = gl.zeros([GROUP, A], gl.float32, OA), gl.zeros([GROUP, B], gl.float32, OB)
    top = gl.full([GROUP], -1e30, gl.float32, gl.SliceLayout(1, S))
    total = gl.zeros([GROUP], gl.float32, gl.SliceLayout(1, S))
    room, phase = 0, 0
    mbarrier.wait(there.index(0), 0)
    mbarrier.wait(there.index(1), 0)
    s = warpgroup_mma_wait(0, deps=(scores(qa, qb, ka_s.index(0), kb_s.index(0), BN, S),))
    mbarrier.arrive(free.index(0))
    top, total, p, _ = softmax(s, top, total, scale, queries, (blocks - 1) * BN, True, BN, S)
    pa, pb = weights(p, va_s.dtype, OA), weights(p, va_s.dtype, OB)
    left = position + count - (blocks - 1) * BN
    if left < BN:
        mbarrier.wait(there.index(1 + STAGES), 0)
        clear(va_s.index(0), left, BN, A)
        clear(vb_s.index(0), left, BN, B)
        fence_async_shared()
        gl.thread_barrier()
    whole = gl.minimum((position + 1) // BN, blocks - 1)  # blocks that every query sees all of
    for block in range(blocks - 1 - whole):
        at = (blocks - 2 - block) * BN
        room, phase, top, total, pa, pb, oa, ob = step(
            qa, qb, ka_s, kb_s, va_s, vb_s, there, free, room, phase, top, total, pa, pb, oa, ob, scale, queries, at,
            True, BN, S, OA, OB, STAGES,
        )  # fmt: skip
    for _ in range(whole):
        room, phase, top, total, pa, pb, oa, ob = step(
            qa, qb, ka_s, kb_s, va_s, vb_s, there, free, room, phase, top, total, pa, pb, oa, ob, scale, queries, 0,
            False, BN, S, OA, OB, STAGES,
        )  # fmt: skip
    mbarrier.wait(there.index(1 + STAGES + room), phase)
    oa = warpgroup_mma(pa, va_s.index(room), oa, is_async=True)
    ob = warpgroup_mma(pb, vb_s.index(room), ob, is_async=True)
    oa, ob = warpgroup_mma_wait(0, deps=(oa, ob))
    store(y, oa, total, start, count, head, group, 0, HEADS, D, A, OA)
    store(y, ob, total, start, count, head, group, A, HEADS, D, B, OB)
    if LSE:
        n = GROUP * group + gl.arange(0, GROUP, gl.SliceLayout(1, S))
        gl.store(lse + head * T + start + n, top + gl.log2(total), mask=n < count)


@gluon.jit
def step(
    qa, qb, ka_s, kb_s, va_s, vb_s, there, free, room, phase, top, total, pa, pb, oa, ob, scale, queries, at,
    MASKED: gl.constexpr, BN: gl.constexpr, S: gl.constexpr, OA: gl.constexpr, OB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The scores of a block of keys from ``at`` on, while the values of the block before are added."""
    next, next_phase = following(room, phase, STAGES)
    mbarrier.wait(there.index(1 + next), next_phase)
    s = scores(qa, qb, ka_s.index(next), kb_s.index(next), BN, S)
    mbarrier.wait(there.index(1 + STAGES + room), phase)
    oa = warpgroup_mma(pa, va_s.index(room), oa, is_async=True)
    ob = warpgroup_mma(pb, vb_s.index(room), ob, is_async=True)
    s = warpgroup_mma_wait(2, deps=(s,))
    mbarrier.arrive(free.index(next))
    top, total, p, old = softmax(s, top, total, scale, queries, at, MASKED, BN, S)
    oa, ob, pa, pb = warpgroup_mma_wait(0, deps=(oa, ob, pa, pb))
    mbarrier.arrive(free.index(STAGES + room))
    oa *= gl.convert_layout(old, gl.SliceLayout(1, OA), assert_trivial=True)[:, None]
    ob *= gl.convert_layout(old, gl.SliceLayout(1, OB), assert_trivial=True)[:, None]
    return next, next_phase, top, total, weights(p, va_s.dtype, OA), weights(p, va_s.dtype, OB), oa, ob


@gluon.jit
def scores(qa, qb, ka, kb, BN: gl.constexpr, S: gl.constexpr):
    s = warpgroup_mma_init(gl.zeros([GROUP, BN], gl.float32, S))
    s = warpgroup_mma(qa, ka.permute((1, 0)), s, use_acc=False, is_async=True)
    return warpgroup_mma(qb, kb.permute((1, 0)), s, is_async=True)


@gluon.jit
def softmax(s, top, total, scale, queries, at, MASKED: gl.constexpr, BN: gl.constexpr, S: gl.constexpr):
    """Largest scores and sums so far, this block's weights, and how much less counts what came before."""
    if MASKED:
        keys = at + gl.arange(0, BN, gl.SliceLayout(0, S))
        s = gl.where(keys[None, :] <= queries[:, None], s, float("-inf"))
    higher = gl.maximum(top, gl.max(s, 1) * scale)
    old = gl.exp2(top - higher)
    p = gl.exp2(s * scale - higher[:, None])
    return higher, total * old + gl.sum(p, 1), p, old


@gluon.jit
def weights(p, dtype: gl.constexpr, O: gl.constexpr):  # noqa: E741
    """As the product with values reads them: the same numbers in the same registers."""
    return gl.convert_layout(p.to(dtype), gl.DotOperandLayout(0, O, 2), assert_trivial=True)


@gluon.jit
def clear(v_s, left, BN: gl.constexpr, WIDE: gl.constexpr):
    """Zeros for values from ``left`` on: whatever stands there is not the sequence's, and nothing times nan is nan."""
    lanes: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // WIDE, WIDE // 8], [4, 1], [1, 0])
    for first in gl.static_range(0, BN, 32):
        some = v_s.slice(first, 32)
        v = some.load(lanes)
        row = first + gl.arange(0, 32, gl.SliceLayout(1, lanes))
        some.store(gl.where((row < left)[:, None], v, gl.zeros_like(v)))


@gluon.jit
def store(
    y, o, total, start, count, head, group: gl.constexpr, channel: gl.constexpr,
    HEADS: gl.constexpr, D: gl.constexpr, WIDE: gl.constexpr, O: gl.constexpr,  # noqa: E741
):  # fmt: skip
    n = GROUP * group + gl.arange(0, GROUP, gl.SliceLayout(1, O))
    o /= gl.convert_layout(total, gl.SliceLayout(1, O), assert_trivial=True)[:, None]
    to = y + ((start + n).to(gl.int64) * HEADS + head)[:, None] * D
    to += channel + gl.arange(0, WIDE, gl.SliceLayout(0, O))[None, :]
    gl.store(to, o.to(y.dtype.element_ty), mask=(n < count)[:, None])
