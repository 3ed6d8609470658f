"""Launch configurations as data: what is chosen for a shape, with no search at run time."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Launch:
    warps: int
    stages: int
    registers: int | None = None  # at most, a thread


@dataclass(frozen=True)
class Config:
    """How the kernels are launched for one kind of input."""

    chunk: int  # tokens a product sees at once; 64 is a multiple of it
    wide: int  # channels of a head that one program takes; wider heads are cut (the gradient takes them whole)
    programs: int  # programs wanted a multiprocessor: sets how many chunks a segment has
    most: int  # chunks a segment has at most
    add: Launch
    scan: Launch
    walk: Launch
    inputs: Launch
    maps: Launch
    heads: int  # heads that one program of ``maps`` takes
    hand_on: int = 1024  # numbers of a state that one program hands on


NARROW = Config(  # 16-bit inputs, d_state up to 64
    chunk=64,
    wide=64,
    programs=3,
    most=16,
    add=Launch(4, 2),
    scan=Launch(4, 3),
    walk=Launch(4, 3),
    inputs=Launch(4, 1, 128),
    maps=Launch(4, 3),
    heads=10,
)
BROAD = replace(  # d_state up to 128
    NARROW, programs=6, add=Launch(4, 3), scan=Launch(4, 1), inputs=Launch(4, 1), maps=Launch(8, 2), heads=8
)
ONE = Launch(4, 1)
WIDE = Launch(8, 1)
LARGE = Config(64, 32, 3, 16, add=ONE, scan=ONE, walk=ONE, inputs=WIDE, maps=WIDE, heads=4)  # states beyond 64 x 128
EXACT = Config(32, 16, 3, 16, add=ONE, scan=ONE, walk=ONE, inputs=WIDE, maps=WIDE, heads=4)  # float32
EXACT_LARGE = replace(EXACT, chunk=16)

LARGE_STATE = 64 * 128
LARGEST_GRADIENT = {torch.float32: 128 * 128, torch.bfloat16: 128 * 256, torch.float16: 128 * 256}  # P N, as powers of two


def power(n: int) -> int:
    """The power of two that a size is padded to."""
    return max(16, 1 << (n - 1).bit_length())


def config(dtype: torch.dtype, P: int, N: int) -> Config:
    large = power(P) * power(N) > LARGE_STATE
    if dtype == torch.float32:
        return EXACT_LARGE if large else EXACT
    if large:
        return LARGE
    return NARROW if N <= 64 else BROAD


def segment_length(c: Config, lengths: tuple[int, ...], longest: int, H: int, multiprocessors: int) -> int:
    """Tokens of a segment: as many as leave each multiprocessor its programs, and never more than the longest sequence needs.
    Where sequences alone are as many, none is cut."""
    chunks = sum(-(-n // c.chunk) for n in lengths)
    longest = -(-longest // c.chunk)
    if chunks // longest * H >= c.programs * multiprocessors:
        return longest * c.chunk
    most = max(1, min(chunks * H // (c.programs * multiprocessors), c.most, longest))
    return -(-longest // -(-longest // most)) * c.chunk  # pieces of the longest sequence as equal as can be
