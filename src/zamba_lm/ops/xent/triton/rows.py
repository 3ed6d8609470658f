"""Loss and gradient of rows of logits: one program a row, in place.

A row of up to BLOCK logits stays in registers between being read and being overwritten. A longer one is read twice, with the
largest logit and the sum of exponentials kept up as it passes; the second time it comes out of the cache, and as few registers
are held, several rows are on their way at once. On an H200 8192 and 32000 logits pass a quarter to a third faster so.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def loss_kernel(
    logits,
    targets,
    losses,
    entropies,
    means,
    tops,
    V,
    stride,
    BLOCK: tl.constexpr,
    ONCE: tl.constexpr,
    GRADIENT: tl.constexpr,
    SCORES: tl.constexpr,
):
    """losses[t] = log sum exp(logits[t]) - logits[t, target]; where GRADIENT, logits become the loss's gradient; where SCORES,
    also the distribution's entropy, the mean logit, and whether none is above the target's."""
    t = tl.program_id(0).to(tl.int64)
    logits += t * stride
    target = tl.load(targets + t)
    columns = tl.arange(0, BLOCK)
    if target < 0:
        tl.store(losses + t, 0.0)
        if SCORES:
            _store(entropies + t, 0.0, means + t, 0.0, tops + t, False)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                zeros = tl.zeros((BLOCK,), logits.dtype.element_ty)
                tl.store(logits + start + columns, zeros, mask=start + columns < V)
    else:
        # a target that no logit belongs to makes the loss nan
        hit = tl.load(logits + target, mask=target < V, other=float("nan")).to(tl.float32)
        row = tl.load(logits + columns, mask=columns < V, other=float("-inf")).to(tl.float32) * LOG2E
        top = tl.max(row, axis=0)
        total, spread, summed = _sums(row, top, columns < V, SCORES)
        if not ONCE:
            for start in range(BLOCK, V, BLOCK):
                row = tl.load(logits + start + columns, mask=start + columns < V, other=float("-inf")).to(tl.float32) * LOG2E
                higher = tl.maximum(top, tl.max(row, axis=0))
                more, more_spread, more_summed = _sums(row, higher, start + columns < V, SCORES)
                if SCORES:
                    spread = (spread + total * (top - higher)) * tl.exp2(top - higher) + more_spread
                    summed += more_summed
                total = total * tl.exp2(top - higher) + more
                top = higher
        log_z = top + tl.log2(total)
        tl.store(losses + t, log_z * LN2 - hit)
        if SCORES:
            entropy = (tl.log2(total) - spread / total) * LN2
            _store(entropies + t, entropy, means + t, summed * LN2 / V, tops + t, hit * LOG2E == top)
        if GRADIENT:
            if ONCE:
                _gradient(logits, row, log_z, target, columns, V)
            else:
                tl.debug_barrier()
                for start in range(0, V, BLOCK):
                    row = tl.load(logits + start + columns, mask=start + columns < V, other=0.0).to(tl.float32) * LOG2E
                    _gradient(logits + start, row, log_z, target - start, columns, V - start)


@triton.jit
def _sums(row, top, there, SCORES: tl.constexpr):
    """Of 2^(row - top); where SCORES, of these times (row - top), 0 where a logit is -inf, and of the row."""
    gap = row - top
    share = tl.exp2(gap)
    if SCORES:
        spread = tl.sum(share * tl.maximum(gap, -1000.0), axis=0)
        summed = tl.sum(tl.where(there, row, 0.0), axis=0)
    else:
        spread = 0.0
        summed = 0.0
    return tl.sum(share, axis=0), spread, summed


@triton.jit
def _store(to_entropy, entropy, to_mean, mean, to_top, is_top):
    tl.store(to_entropy, entropy)
    tl.store(to_mean, mean)
    tl.store(to_top, is_top)


@triton.jit
def _gradient(to, row, log_z, target, columns, V):
    share = tl.exp2(row - log_z) - tl.where(columns == target, 1.0, 0.0)
    tl.store(to + columns, share.to(to.dtype.element_ty), mask=columns < V)
