"""Some dozens of rows times a weight on tensor cores, bound by reading the weight, for Hopper.

A program owns up to 128 rows of the weight, or of a half of it, over all columns or a share of them, and streams them through a
ring in shared memory. EARLY tiles are asked for before it waits for the kernel in front, so that memory is busy while that one
ends; not more, since x and what that one still has to do queue behind them. Where columns are shared out, the last program of
some rows to arrive adds the sums up, unless a norm is to do that. What a convolution of one token reads, it may convolve.

Written in Gluon, as ``ring.py`` is.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from zamba_lm.ops.linear.triton.window import convolved, load_past, load_taps, shift, window_of

EARLY = gl.constexpr(2)


@gluon.jit
def columns(to, rows, inside, at, I: gl.constexpr, BK: gl.constexpr, layout: gl.constexpr):  # noqa: E741
    """Ask for columns [at, at + BK) of some rows; zeros for rows that are not inside."""
    k = (at + gl.arange(0, BK, gl.SliceLayout(0, layout)))[None, :]
    keep = inside if I % BK == 0 else inside & (k < I)
    async_copy.async_copy_global_to_shared(to, rows + k, mask=keep)


@gluon.jit
def weights(
    ring_w,
    ring_u,
    slot,
    w_rows,
    u_rows,
    inside,
    at,
    I: gl.constexpr,  # noqa: E741
    BK: gl.constexpr,
    GATED: gl.constexpr,
    layout: gl.constexpr,
):
    """Ask for a tile of the weight, where GATED of both halves."""
    columns(ring_w.index(slot), w_rows, inside, at, I, BK, layout)
    if GATED:
        columns(ring_u.index(slot), u_rows, inside, at, I, BK, layout)


@gluon.jit
def streams_kernel(
    x,
    w,
    r,
    y,
    partial,
    counters,
    convolved_x,
    window,
    slots,
    conv_weight,
    conv_bias,
    window_slot,
    window_row,
    S,
    O,  # noqa: E741
    x_eighths,
    r_stride,
    I: gl.constexpr,  # noqa: E741
    LINES: gl.constexpr,
    M: gl.constexpr,
    BS: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    SPLITS: gl.constexpr,
    ADDED: gl.constexpr,
    RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    INNER: gl.constexpr,
    C: gl.constexpr,
    K: gl.constexpr,
    SLOTS: gl.constexpr,
    OLD: gl.constexpr,
    WARPS: gl.constexpr,
    PDL: gl.constexpr,
):
    """y (S, O) = x w^T + r, or with GATED gelu(gate) * up of w (2 O, I). Programs: (blocks of LINES rows, splits of the columns).

    S is at most BS. LINES of the M rows of a tile are real. A gate needs whole sums, so its columns are not shared out. Rows of x
    lie x_eighths * 8 numbers apart, which tells the compiler that they begin at multiples of 16 bytes. Not ADDED: shares of sums
    stay apart, in ``partial`` (SPLITS, S, O). With K taps, C outputs from INNER on go through a convolution to ``convolved_x``
    and into the windows, not to y; OLD windows are read before the wait.
    """
    gl.static_assert(STAGES > EARLY and ((not GATED and K == 0) or SPLITS == 1))
    LANES: gl.constexpr = M // 8 if M < 256 else 32
    to: gl.constexpr = gl.BlockedLayout([8, 1], [LANES, 32 // LANES], [1, WARPS], [0, 1])
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // BK, BK // 8], [WARPS, 1], [1, 0])
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    sums: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BS, 16])
    if PDL:
        gdc_launch_dependents()
    ring_w = gl.allocate_shared_memory(w.dtype.element_ty, [STAGES, M, BK], shared)
    ring_x = gl.allocate_shared_memory(w.dtype.element_ty, [STAGES, BS, BK], shared)
    ring_u = ring_w
    if GATED:
        ring_u = gl.allocate_shared_memory(w.dtype.element_ty, [STAGES, M, BK], shared)
    STEPS: gl.constexpr = (I + BK - 1) // BK
    first = gl.program_id(1) * STEPS // SPLITS
    steps = (gl.program_id(1) + 1) * STEPS // SPLITS - first
    line = gl.arange(0, M, gl.SliceLayout(1, layout))
    out = gl.program_id(0) * LINES + line
    w_in = ((line < LINES) & (out < O))[:, None]
    w_rows = w + gl.minimum(out, O - 1).to(gl.int64)[:, None] * I
    u_rows = w_rows + O.to(gl.int64) * I
    s = gl.arange(0, BS, gl.SliceLayout(1, layout))
    x_in = (s < S)[:, None]
    x_rows = x + gl.minimum(s, S - 1).to(gl.int64)[:, None] * x_eighths * 8
    for stage in gl.static_range(EARLY):
        if stage < steps:
            weights(ring_w, ring_u, stage, w_rows, u_rows, w_in, (first + stage) * BK, I, BK, GATED, layout)
    if K > 0:
        c, in_c, own = window_of(window, slots, gl.program_id(0) * LINES, S, window_slot, INNER, C, LINES, M, BS, SLOTS, to)
        keep = in_c[:, None] & (gl.arange(0, BS, gl.SliceLayout(0, to)) < S)[None, :]
        taps, bias = load_taps(conv_weight, c, in_c, K), gl.load(conv_bias + c, mask=in_c, other=0.0)
        if OLD:
            past = load_past(own, window_row, keep, K)
    if PDL:
        gdc_wait()
    if K > 0 and not OLD:
        past = load_past(own, window_row, keep, K)
    for stage in gl.static_range(STAGES - 1):
        if stage < steps:
            columns(ring_x.index(stage), x_rows, x_in, (first + stage) * BK, I, BK, layout)
            if stage >= EARLY:
                weights(ring_w, ring_u, stage, w_rows, u_rows, w_in, (first + stage) * BK, I, BK, GATED, layout)
        async_copy.commit_group()

    acc = hopper.warpgroup_mma_init(gl.zeros([M, BS], gl.float32, sums))
    up = hopper.warpgroup_mma_init(gl.zeros([M, BS], gl.float32, sums))
    slot = 0
    for step in range(steps):
        async_copy.wait_group(STAGES - 2)
        hopper.fence_async_shared()
        if GATED:
            last, last_up = hopper.warpgroup_mma_wait(0, deps=(acc, up))
        else:
            last = hopper.warpgroup_mma_wait(0, deps=(acc,))
            last_up = last
        gl.thread_barrier()  # this tile is there, and all are done with the one before
        x_tile = ring_x.index(slot).permute((1, 0))
        acc = hopper.warpgroup_mma(ring_w.index(slot), x_tile, last, is_async=True)
        if GATED:
            up = hopper.warpgroup_mma(ring_u.index(slot), x_tile, last_up, is_async=True)
        slot = gl.where(slot == STAGES - 1, 0, slot + 1)
        if step + STAGES - 1 < steps:
            free = gl.where(slot < 2, slot + STAGES - 2, slot - 2)
            at = (first + step + STAGES - 1) * BK
            weights(ring_w, ring_u, free, w_rows, u_rows, w_in, at, I, BK, GATED, layout)
            columns(ring_x.index(free), x_rows, x_in, at, I, BK, layout)
        async_copy.commit_group()
    if GATED:
        acc, up = hopper.warpgroup_mma_wait(0, deps=(acc, up))
    else:
        acc = hopper.warpgroup_mma_wait(0, deps=(acc,))

    if GATED:
        acc = acc * 0.5 * (1.0 + gl.erf(acc * 0.7071067811865476)) * up
    acc = gl.convert_layout(acc, to)
    line = gl.arange(0, M, gl.SliceLayout(1, to))
    at = gl.program_id(0) * LINES + line
    s = gl.arange(0, BS, gl.SliceLayout(0, to))
    inside = ((line < LINES) & (at < O))[:, None] & (s < S)[None, :]
    place = s.to(gl.int64)[None, :] * O + at[:, None]
    if RESIDUAL:  # asked for by all, and here: behind the counter it would be one more wait
        residual = gl.load(r + s.to(gl.int64)[None, :] * r_stride + at[:, None], mask=inside, other=0.0)
    if SPLITS > 1:
        share = partial + gl.program_id(1).to(gl.int64) * S * O
        gl.store(share + place, acc, mask=inside)
        if ADDED:
            gl.thread_barrier()  # the whole program has written before one thread says so
            if gl.atomic_add(counters + gl.program_id(0), 1, sem="acq_rel") == SPLITS - 1:
                total = gl.zeros([M, BS], gl.float32, to)
                for split in gl.static_range(SPLITS):
                    total += gl.load(partial + split * (S * O).to(gl.int64) + place, mask=inside, other=0.0, cache_modifier=".cg")
                if RESIDUAL:
                    total += residual.to(gl.float32)
                gl.store(y + place, total.to(y.dtype.element_ty), mask=inside)
                gl.store(counters + gl.program_id(0), 0)  # ready for the next call
    else:
        if RESIDUAL:
            acc += residual.to(gl.float32)
        new = acc.to(y.dtype.element_ty)
        if K > 0:
            inside = inside & ~in_c[:, None]
            gl.store(convolved_x + s.to(gl.int64)[None, :] * C + c[:, None], convolved(past, new, taps, bias, K), mask=keep)
            shift(own, window_row, past, new, keep, K)
        gl.store(y + place, new, mask=inside)
