"""Attention of many new tokens for heads wider than 256 on Hopper, in one pass: three groups of warps.

A program has 128 queries and half of the value's channels; the other half belongs to the program beside it, which makes the same
scores once more. One group of warps fetches keys and values through the copy engine, in slots of CHANNELS channels that are given
back one by one: with the queries, one block's slots fill shared memory. Two others have 64 queries each, and one's softmax runs
under the other's products.

Written in Gluon, the layer below Triton that says which warps do what; there is no interpreter for it.
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

GROUP = gl.constexpr(64)  # queries of a group of warps
KEYS = gl.constexpr(64)  # of a block
CHANNELS = gl.constexpr(128)  # of a slot
REGISTERS = gl.constexpr((240, 24))  # a thread, of who multiplies and who fetches
LOW = gl.constexpr(-1e38)
TILE = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
SCORES = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16]))
OUTPUT = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16]))
WIDE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))


def slots_of(x, shape: tuple[int, int], step: int) -> TensorDescriptor:
    """What the copy engine reads: slots (KEYS, CHANNELS) of ``shape`` numbers that begin at x, rows ``step`` apart."""
    return TensorDescriptor(x, list(shape), [step, 1], [KEYS.value, CHANNELS.value], TILE.value)


@gluon.jit(do_not_specialize=["n_tiles", "T", "pages_s"])
def tall_kernel(
    q, keys, values, pages, past, tiles, y, lse, n_tiles, T, pages_s, PAGE, scale, q_t, q_h,
    HEADS: gl.constexpr, D: gl.constexpr, PAGED: gl.constexpr, LSE: gl.constexpr,
):  # fmt: skip
    """Programs 2 n and 2 n + 1: a tile of queries of a head. Keys and values lie in pages, in rows of a head, or packed, in rows
    of all heads. ``lse``: log2 of each query's sum."""
    KP: gl.constexpr = (D + CHANNELS - 1) // CHANNELS
    VP: gl.constexpr = (KP + 1) // 2
    part, program = gl.program_id(0) % 2, gl.program_id(0) // 2
    head = program // n_tiles
    tile = tiles + (program % n_tiles) * 4
    sequence, start, count, position = gl.load(tile), gl.load(tile + 1), gl.load(tile + 2), gl.load(tile + 3)
    row = start - position
    if PAGED:
        position += gl.where(count > 0, gl.load(past + sequence), 0)  # a row of zeros is no tile
    blocks = gl.where(count > 0, gl.cdiv(position + count, KEYS), 0)
    queries = gl.allocate_shared_memory(q.dtype.element_ty, [2 * KP, GROUP, CHANNELS], TILE)
    slots = gl.allocate_shared_memory(q.dtype.element_ty, [KP + VP, KEYS, CHANNELS], TILE)
    full = gl.allocate_shared_memory(gl.int64, [KP + VP, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [KP + VP, 1], mbarrier.MBarrierLayout())
    for c in gl.static_range(KP + VP):
        mbarrier.init(full.index(c), count=1)
        mbarrier.init(free.index(c), count=2)
    fence_async_shared()
    place = (head, part, start, count, position)
    room = (queries, slots, full, free)
    gl.warp_specialize(
        [
            (multiply, (q, y, lse, room, place, blocks, scale, q_t, q_h, T, 0, HEADS, D, KP, VP, LSE)),
            (multiply, (q, y, lse, room, place, blocks, scale, q_t, q_h, T, 1, HEADS, D, KP, VP, LSE)),
            (fetch, (keys, values, pages + sequence * pages_s, room, place, blocks, row, PAGE, HEADS, D, KP, VP, PAGED)),
        ],
        [4, 1],
        [REGISTERS[0], REGISTERS[1]],
    )


@gluon.jit
def fetch(
    keys, values, pages, room, place, blocks, row, PAGE,
    HEADS: gl.constexpr, D: gl.constexpr, KP: gl.constexpr, VP: gl.constexpr, PAGED: gl.constexpr,
):  # fmt: skip
    """Fill the slots with block after block. Without pages ``row`` is that of the sequence's first token."""
    head, part, start, count, position = place
    page = gl.load(pages) if PAGED else head
    for i in range(blocks):
        at = i * KEYS
        if PAGED:
            here, column = (page * HEADS + head) * PAGE + at % PAGE, 0
            page = gl.load(pages + gl.minimum(at + KEYS, position + count - 1) // PAGE)
        else:
            here, column = row + at, head * D
        fill(keys, here, column, room, (i & 1) ^ 1, 0, KP)
        fill(values, here, column + part * (VP * CHANNELS), room, (i & 1) ^ 1, KP, VP)


@gluon.jit
def fill(source, row, column, room, phase, first: gl.constexpr, count: gl.constexpr):
    """Fill ``count`` slots from ``first`` on, each once both groups have given it back."""
    _, slots, full, free = room
    for c in gl.static_range(count):
        mbarrier.wait(free.index(first + c), phase)
        mbarrier.expect(full.index(first + c), KEYS * CHANNELS * 2)
        tma.async_copy_global_to_shared(source, [row, column + c * CHANNELS], full.index(first + c), slots.index(first + c))


@gluon.jit
def multiply(
    q, y, lse, room, place, blocks, scale, q_t, q_h, T,
    W: gl.constexpr, HEADS: gl.constexpr, D: gl.constexpr, KP: gl.constexpr, VP: gl.constexpr, LSE: gl.constexpr,
):  # fmt: skip
    """Queries [W GROUP, (W + 1) GROUP) of the tile."""
    head, part, start, count, position = place
    queries = room[0]
    r = W * GROUP + gl.arange(0, GROUP, gl.SliceLayout(1, WIDE))
    q_at = q + (start + r).to(gl.int64)[:, None] * q_t + head * q_h
    for c in gl.static_range(KP):
        d = (c * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(0, WIDE)))[None, :]
        queries.index(W * KP + c).store(gl.load(q_at + d, mask=(r[:, None] < count) & (d < D), other=0.0))
    fence_async_shared()
    m = gl.full([GROUP], LOW, gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([GROUP], gl.float32, gl.SliceLayout(1, SCORES))
    accs = ()
    for _ in gl.static_range(VP):
        accs = accs + (gl.zeros([GROUP, CHANNELS], gl.float32, OUTPUT),)
    first, end = position + W * GROUP, position + count
    whole = gl.minimum((position + 1) // KEYS, blocks)
    m, total, accs = steps(room, m, total, accs, 0, whole, first, end, scale, W, KP, VP, False)
    m, total, accs = steps(room, m, total, accs, whole, blocks, first, end, scale, W, KP, VP, True)
    share = gl.convert_layout(1.0 / total, gl.SliceLayout(1, OUTPUT))[:, None]
    r = W * GROUP + gl.arange(0, GROUP, gl.SliceLayout(1, OUTPUT))
    y_at = y + ((start + r).to(gl.int64)[:, None] * HEADS + head) * D
    for c in gl.static_range(VP):
        d = ((part * VP + c) * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(0, OUTPUT)))[None, :]
        gl.store(y_at + d, (accs[c] * share).to(y.dtype.element_ty), mask=(r[:, None] < count) & (d < D))
    if LSE:
        r = W * GROUP + gl.arange(0, GROUP, gl.SliceLayout(1, SCORES))
        gl.store(lse + head * T + start + r, m + gl.log2(total), mask=(r < count) & (part == 0))


@gluon.jit
def steps(
    room, m, total, accs, start, stop, first, end, scale,
    W: gl.constexpr, KP: gl.constexpr, VP: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Blocks [start, stop) of keys."""
    for i in range(start, stop):
        s = scores(room, i & 1, W, KP)
        p, m, total, accs = weigh(s, m, total, accs, i, first, scale, MASKED)
        accs = mixed(p, accs, room, i, end, KP, VP, MASKED)
    return m, total, accs


@gluon.jit
def scores(room, phase, W: gl.constexpr, KP: gl.constexpr):
    """The products of the queries with a block of keys. A slot is given back once the product behind its own is asked for."""
    queries, slots, full, free = room
    s = gl.zeros([GROUP, KEYS], gl.float32, SCORES)
    for c in gl.static_range(KP):
        mbarrier.wait(full.index(c), phase)
        s = warpgroup_mma(queries.index(W * KP + c), slots.index(c).permute((1, 0)), s, use_acc=c > 0, is_async=True)
        if c > 0:
            s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(free.index(c - 1))
    s = warpgroup_mma_wait(0, deps=[s])
    mbarrier.arrive(free.index(KP - 1))
    return s


@gluon.jit
def weigh(s, m, total, accs, i, first, scale, MASKED: gl.constexpr):
    """Weights of block i relative to the largest score so far, and sums and output brought to it."""
    if MASKED:
        key = i * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
        query = first + gl.arange(0, GROUP, gl.SliceLayout(1, SCORES))
        s = gl.where(key[None, :] <= query[:, None], s, float("-inf"))
    top = gl.maximum(m, gl.max(s, axis=1) * scale)
    p = gl.exp2(s * scale - top[:, None])
    old = gl.exp2(m - top)
    fade = gl.convert_layout(old, gl.SliceLayout(1, OUTPUT))[:, None]
    faded = ()
    for c in gl.static_range(len(accs)):
        faded = faded + (accs[c] * fade,)
    return p, top, total * old + gl.sum(p, axis=1), faded


@gluon.jit
def mixed(p, accs, room, i, end, KP: gl.constexpr, VP: gl.constexpr, MASKED: gl.constexpr):
    """The output and what the weights make of block i's values. Behind the end may lie anything, and nothing times nan is nan:
    zeros instead, written by both groups, each before its own product."""
    _, slots, full, free = room
    p = gl.convert_layout(p.to(slots.dtype), gl.DotOperandLayout(operand_index=0, parent=OUTPUT, k_width=2))
    asked, done = (), ()
    for c in gl.static_range(VP):
        mbarrier.wait(full.index(KP + c), i & 1)
        if MASKED:
            if i * KEYS + KEYS > end:
                n = (i * KEYS + gl.arange(0, KEYS, gl.SliceLayout(1, WIDE)))[:, None]
                v = slots.index(KP + c).load(WIDE)
                slots.index(KP + c).store(gl.where(n < end, v, 0.0).to(v.dtype))
                fence_async_shared()
        asked = asked + (warpgroup_mma(p, slots.index(KP + c), accs[c], is_async=True),)
    for c in gl.static_range(VP):
        done = done + (warpgroup_mma_wait(VP - 1 - c, deps=[asked[c]]),)
        mbarrier.arrive(free.index(KP + c))
    return done
