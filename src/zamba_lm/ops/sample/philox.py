"""Random numbers without a state to carry: the n-th number of a seed, computed from n and the seed alone.

Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a counter of four
32-bit words into four random ones under a key of two words. The key is the seed, the counter the number of the draw. All of it
is whole numbers, so a Python int, a tensor and the kernel in ``triton/draw.py`` give the same bits.
"""

from torch import Tensor

WORD = 0xFFFFFFFF
ROUNDS = 10
FACTORS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter, key):
    """Four words from four words of counter under two words of key: whole numbers below 2^32, or int64 tensors of them."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low, high = FACTORS[0] * c0, FACTORS[1] * c2  # 64 bits; in a tensor the top one is a sign, which the masks take away
        c0, c1, c2, c3 = (high >> 32) & WORD ^ c1 ^ k0, high & WORD, (low >> 32) & WORD ^ c3 ^ k1, low & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def uniform(seed, drawn):
    """Number ``drawn`` (0 is the first) of a seed: a float64 in [0, 1), a multiple of 2^-53.

    Both are whole numbers of 64 bits, or int64 tensors of them, where a seed from 2^63 on is stored as its negative twin.
    """
    a, b, _, _ = philox((drawn & WORD, (drawn >> 32) & WORD, 0, 0), (seed & WORD, (seed >> 32) & WORD))
    bits = (a >> 5) << 26 | b >> 6
    return (bits.double() if isinstance(bits, Tensor) else bits) * 2.0**-53
