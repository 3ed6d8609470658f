"""Cut-offs of a row without a sort.

float32 numbers that are not negative are ordered as their bits are. A cut-off is searched for in an interval of bits, one look
at the whole row a round. A look at ``middle`` also finds the numbers of the row next to it on either side, and the interval
shrinks to them, so equal numbers, however many, take no longer than one. ``middle`` is where a straight line between the ends
expects the cut-off, and every third time halfway, so no row takes more than a hundred rounds; ordinary ones take five to ten.
"""

import triton
import triton.language as tl

INFINITE = tl.constexpr(0x7F800000)  # bits of float32 infinity
ONE = tl.constexpr(0x3F800000)  # bits of float32 1
OCTAVE = tl.constexpr(0x00800000)  # from the bits of a number to those of its double
NONE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _merge(mass, below, above, other_mass, other_below, other_above):
    return mass + other_mass, tl.maximum(below, other_below), tl.minimum(above, other_above)


@triton.jit
def _number(bits):
    return tl.maximum(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def _middle(low, high, share, turn):
    """Bits strictly between low and high: ``share`` of the way in numbers, every third turn half the way in bits."""
    a, b = _number(low), _number(high)
    guess = (a + (b - a) * tl.minimum(tl.maximum(share, 0.0), 1.0)).to(tl.int32, bitcast=True)
    guess = tl.where(turn % 3 == 2, low + (high - low) // 2, guess)
    return tl.minimum(tl.maximum(guess, low + 1), high - 1)


@triton.jit
def kth_smallest(x, k, V):
    """Bits of the k-th smallest of V numbers x >= 0; those beyond V are infinite, and k < V."""
    bits = tl.ravel(x, can_reorder=True).to(tl.int32, bitcast=True)
    low, high, n_low, n_high, turn = -1, INFINITE, 0, V, 0  # fewer than k are <= low, k or more <= high
    while high - low > 1:
        some = tl.log2(n_low + 0.5)  # the number of tokens grows about exponentially with the distance
        middle = _middle(low, high, (tl.log2(k * 1.0) - some) / (tl.log2(n_high * 1.0) - some), turn)
        middle = tl.where(high == INFINITE, tl.minimum(tl.maximum(low, ONE) + 2 * OCTAVE, INFINITE - 1), middle)
        under = bits <= middle
        n, below, above = tl.reduce((under.to(tl.int32), tl.where(under, bits, -1), tl.where(under, NONE, bits)), 0, _merge)
        if n < k:
            low, n_low = above - 1, n
            if n == k - 1:
                high = above
        else:
            high, n_high = below, n
            if n == k:
                low = below - 1
        turn += 1
    return high


@triton.jit
def least_needed(x, share):
    """Bits of the smallest of the fewest largest numbers x, from 0 to 1 with a 1 among them, that add up to ``share`` of all."""
    x = tl.ravel(x, can_reorder=True)
    bits = x.to(tl.int32, bitcast=True)
    n_all = tl.sum(x)
    goal = share * n_all
    low, high, n_low, n_high, turn = 0, ONE, n_all, 0.0, 0  # those > low add up to the goal or more, those > high to less
    while high - low > 1:
        middle = _middle(low, high, (n_low - goal) / (n_low - n_high), turn)
        middle = tl.where(low == 0, tl.maximum(high - 10 * OCTAVE, high // 2), middle)
        over = bits > middle
        n, below, above = tl.reduce((tl.where(over, x, 0.0), tl.where(over, -1, bits), tl.where(over, bits, NONE)), 0, _merge)
        if (n >= goal) & (n > 0):
            low, n_low = above - 1, n
            if n - _number(above) < goal:
                high = above
        else:
            high, n_high = below, n
            if n + _number(below) >= goal:
                low = below - 1
        turn += 1
    return low + 1
