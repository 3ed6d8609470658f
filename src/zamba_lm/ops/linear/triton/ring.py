"""One row times a weight, for GPUs whose multiprocessors hold much memory of their own: each streams its share through rings.

A program a multiprocessor, which asks for another tile whenever one is used up. Before it waits for the kernel in front it asks
for a tile and a half: enough to keep memory busy until that one is done, and no more, since what that one still has to write, and
x, would queue behind it.

Written in Gluon, the layer below Triton that places shared memory by hand; there is no interpreter for it.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@gluon.constexpr_function
def halves(width, least):
    """Two powers of two, of at least ``least``, that hold ``width`` columns, the second perhaps 0: what the compiler wants of a
    tile."""
    main = max(1 << (width.bit_length() - 1), least)
    rest = width - main
    return main, max(triton.next_power_of_2(rest), least) if rest > 0 else 0


@gluon.jit
def numbers(x, x2, at: gl.constexpr, size: gl.constexpr, I1: gl.constexpr, I: gl.constexpr, layout: gl.constexpr):  # noqa: E741
    """Numbers [at, at + size) of a row that begins at ``x`` and, from I1 on, goes on at ``x2``; zeros beyond I. Float32."""
    k = at + gl.arange(0, size, layout)
    if at + size <= I1:
        return gl.load(x + k).to(gl.float32)
    elif at >= I1:
        return gl.load(x2 + (k - I1), mask=k < I, other=0.0).to(gl.float32)
    elif I1 == I:
        return gl.load(x + k, mask=k < I, other=0.0).to(gl.float32)
    else:
        left = gl.load(x + k, mask=k < I1, other=0.0).to(gl.float32)
        return left + gl.load(x2 + (k - I1), mask=(k >= I1) & (k < I), other=0.0).to(gl.float32)


@gluon.jit
def copy(to, rows, at: gl.constexpr, size: gl.constexpr, I: gl.constexpr, layout: gl.constexpr):  # noqa: E741
    """Ask for columns [at, at + size) of some rows of the weight; zeros beyond I."""
    k = (at + gl.arange(0, size, gl.SliceLayout(0, layout)))[None, :]
    if at + size <= I:
        async_copy.async_copy_global_to_shared(to, rows + k)
    else:
        async_copy.async_copy_global_to_shared(to, rows + k, mask=k < I)


@gluon.jit
def ask(
    ring,
    ring2,
    slot,
    w,
    tile,
    O,  # noqa: E741
    I: gl.constexpr,  # noqa: E741
    FROM: gl.constexpr,
    COUNT: gl.constexpr,
    LINES: gl.constexpr,
    MAIN: gl.constexpr,
    REST: gl.constexpr,
    GATED: gl.constexpr,
    layout: gl.constexpr,
):
    """Ask for COUNT of a tile's lines; gate and up in turn, so that their products lie side by side."""
    line = FROM + gl.arange(0, COUNT, gl.SliceLayout(1, layout))
    if GATED:
        out = gl.minimum(tile * (LINES // 2) + line // 2, O - 1) + (line % 2) * O
    else:
        out = gl.minimum(tile * LINES + line, O - 1)
    rows = w + out.to(gl.int64)[:, None] * I
    copy(ring.index(slot).slice(FROM, COUNT, dim=0), rows, 0, MAIN, I, layout)
    if REST > 0:
        copy(ring2.index(slot).slice(FROM, COUNT, dim=0), rows, MAIN, REST, I, layout)


@gluon.jit
def pairs_of(part, layout: gl.constexpr):
    """The numbers in even and in odd places, each in its thread."""
    even, odd = gl.split(gl.reshape(part, [part.shape[0] // 2, 2]))
    return gl.convert_layout(even, layout, assert_trivial=True), gl.convert_layout(odd, layout, assert_trivial=True)


@gluon.jit
def normed(parts, gains, eps, I: gl.constexpr, CH: gl.constexpr, GROUPS: gl.constexpr, along: gl.constexpr):  # noqa: E741
    """A row in pieces of CH, each of GROUPS parts of it by its own rms, times the norm's weight."""
    WIDTH: gl.constexpr = I // GROUPS
    for group in gl.static_range(GROUPS):
        squares = gl.zeros([CH], gl.float32, along)
        for i in gl.static_range(len(parts)):
            inside = (i * CH + gl.arange(0, CH, along)) // WIDTH == group
            squares += parts[i] * parts[i] if GROUPS == 1 else gl.where(inside, parts[i] * parts[i], 0.0)
        scale = gl.rsqrt(gl.sum(squares, 0) / WIDTH + eps)
        scaled = ()
        for i in gl.static_range(len(parts)):
            inside = (i * CH + gl.arange(0, CH, along)) // WIDTH == group
            scaled = scaled + (parts[i] * scale if GROUPS == 1 else gl.where(inside, parts[i] * scale, parts[i]),)
        parts = scaled
    found = ()
    for i in gl.static_range(len(parts)):
        found = found + (parts[i] * gains[i],)
    return found


@gluon.jit
def added(acc, held, part, even, odd, PAIRS: gl.constexpr):
    """acc + what is held of some lines times a part of x. Of two bfloat16 numbers in 32 bits, one instruction makes a float32 of
    either: the upper half, or the lower half moved up."""
    if PAIRS:
        acc += (held << 16).to(gl.float32, bitcast=True) * even[None, :]
        return acc + (held & -65536).to(gl.float32, bitcast=True) * odd[None, :]
    else:
        return acc + held.to(gl.float32) * part[None, :]


@gluon.jit
def ring_kernel(
    x,
    x2,
    w,
    g,
    r,
    y,
    O,  # noqa: E741
    eps,
    I: gl.constexpr,  # noqa: E741
    I1: gl.constexpr,
    LINES: gl.constexpr,
    WARPS: gl.constexpr,
    DOWN: gl.constexpr,
    STAGES: gl.constexpr,
    GROUPS: gl.constexpr,
    RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
):
    """y (O) = norm([x | x2]) w^T + r, or with GATED y (O) = gelu(gate) * up of a weight (2 O, I).

    g: weight of the norm over GROUPS parts (0: no norm). A tile is LINES rows of the weight; CH columns are multiplied at a time.
    """
    ROWS: gl.constexpr = LINES // 2 if GATED else LINES
    CH: gl.constexpr = 256 * (WARPS // DOWN)
    CHUNKS: gl.constexpr = (I + CH - 1) // CH
    MAIN: gl.constexpr = halves(I, CH)[0]
    REST: gl.constexpr = halves(I, CH)[1]
    PAIRS: gl.constexpr = w.dtype.element_ty == gl.bfloat16  # two to 32 bits: one instruction makes a float32 of either
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [DOWN, WARPS // DOWN], [1, 0])
    words: gl.constexpr = gl.BlockedLayout([1, 4 if PAIRS else 8], [1, 32], [DOWN, WARPS // DOWN], [1, 0])
    along: gl.constexpr = gl.SliceLayout(0, layout)
    shared: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    if PDL:
        gdc_launch_dependents()
    ring = gl.allocate_shared_memory(w.dtype.element_ty, [STAGES, LINES, MAIN], shared)
    ring2 = ring
    if REST > 0:
        ring2 = gl.allocate_shared_memory(w.dtype.element_ty, [STAGES, LINES, REST], shared)
    first, step = gl.program_id(0), gl.num_programs(0)
    tiles = gl.cdiv(O, ROWS)
    gl.static_assert(LINES > 1 and STAGES > 1)
    HALF: gl.constexpr = LINES // 2
    ask(ring, ring2, 0, w, first, O, I, 0, LINES, LINES, MAIN, REST, GATED, layout)
    async_copy.commit_group()
    if first + step < tiles:
        ask(ring, ring2, 1, w, first + step, O, I, 0, HALF, LINES, MAIN, REST, GATED, layout)
    gains = ()
    if GROUPS > 0:
        for i in gl.static_range(CHUNKS):
            gains = gains + (numbers(g, g, i * CH, CH, I, I, along),)
    if PDL:
        gdc_wait()

    parts = ()
    for i in gl.static_range(CHUNKS):  # asked for before more of the weight is
        parts = parts + (numbers(x, x2, i * CH, CH, I1, I, along),)
    for stage in gl.static_range(1, STAGES):
        FROM: gl.constexpr = HALF if stage == 1 else 0
        if first + stage * step < tiles:
            ask(ring, ring2, stage, w, first + stage * step, O, I, FROM, LINES - FROM, LINES, MAIN, REST, GATED, layout)
        async_copy.commit_group()
    if GROUPS > 0:
        parts = normed(parts, gains, eps, I, CH, GROUPS, along)
    COLUMNS: gl.constexpr = 2 if PAIRS else 1  # of the weight, that an element of a tile in registers holds
    evens, odds = parts, parts
    if PAIRS:
        evens, odds = (), ()
        for i in gl.static_range(CHUNKS):
            even, odd = pairs_of(parts[i], gl.SliceLayout(0, words))
            evens, odds = evens + (even,), odds + (odd,)
        ring_in, ring2_in = ring._reinterpret(gl.int32, [STAGES, LINES, MAIN // 2], shared), ring
        if REST > 0:
            ring2_in = ring2._reinterpret(gl.int32, [STAGES, LINES, REST // 2], shared)
    else:
        ring_in, ring2_in = ring, ring2

    slot = 0
    for tile in range(first, tiles, step):
        if GATED:
            at = tile * ROWS + gl.arange(0, ROWS, gl.BlockedLayout([1], [32], [WARPS], [0]))
        else:
            at = tile * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, words))
        if RESIDUAL:
            residual = gl.load(r + at, mask=at < O, other=0.0).to(gl.float32)
        async_copy.wait_group(STAGES - 1)
        held = ()
        for i in gl.static_range(CHUNKS):
            if i * CH < MAIN:
                piece = ring_in.index(slot).slice(i * CH // COLUMNS, CH // COLUMNS, dim=1)
            else:
                piece = ring2_in.index(slot).slice((i * CH - MAIN) // COLUMNS, CH // COLUMNS, dim=1)
            held = held + (piece.load(words),)
        gl.thread_barrier()  # all have taken their share of the tile
        if tile + STAGES * step < tiles:
            ask(ring, ring2, slot, w, tile + STAGES * step, O, I, 0, LINES, LINES, MAIN, REST, GATED, layout)
        async_copy.commit_group()
        acc = gl.zeros([LINES, CH // COLUMNS], gl.float32, words)
        for i in gl.static_range(CHUNKS):
            acc = added(acc, held[i], parts[i], evens[i], odds[i], PAIRS)
        product = gl.sum(acc, 1)
        if GATED:
            pairs: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [WARPS, 1], [1, 0])
            gate, value = gl.split(gl.convert_layout(gl.reshape(product, [ROWS, 2]), pairs))
            product = gate * 0.5 * (1.0 + gl.erf(gate * 0.7071067811865476)) * value
            product = gl.convert_layout(product, gl.BlockedLayout([1], [32], [WARPS], [0]))
        if RESIDUAL:
            product += residual
        gl.store(y + at, product.to(y.dtype.element_ty), mask=at < O)
        slot = gl.where(slot == STAGES - 1, 0, slot + 1)
