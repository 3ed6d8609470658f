"""Random inputs of the two recurrences, with outputs of the order of 1, and the lengths that tests try."""

import torch

LENGTHS = (1, 2, 63, 64, 65, 300, 500)
MIXED = (1, 2, 2, 65, 65, 3, 1, 300)  # packed together: neighbours of one length and of different ones
NAMES = ("x", "dt", "A", "B", "C", "D")


def ssd(total, *, heads=4, width=5, groups=1, n=16, sequences=1, dtype=torch.float32):
    """(x, dt, A, B, C, D) of Mamba-2 for ``total`` tokens, and a state for every sequence."""
    g = torch.Generator().manual_seed(total + n + groups)
    x = torch.randn(total, heads, width, generator=g).to(dtype)
    dt = torch.rand(total, heads, generator=g) * 0.2 + 1e-3
    A = -torch.rand(heads, generator=g) * 8 - 0.1
    B, C = (torch.randn(2, total, groups, n, generator=g) / n**0.25).to(dtype)
    D = torch.randn(heads, generator=g)
    return (x, dt, A, B, C, D), torch.randn(sequences, heads, width, n, generator=g)


def scan(total, *, heads=2, width=6, n=16, sequences=1, dtype=torch.float32):
    """(x, dt, A, B, C, D) of Mamba-1 for ``total`` tokens, and a state for every sequence."""
    g = torch.Generator().manual_seed(total + n)
    x = torch.randn(total, heads, width, generator=g).to(dtype)
    dt = torch.rand(total, heads, width, generator=g) * 0.2 + 1e-3
    A = -torch.rand(heads, width, n, generator=g) * 8 - 0.1
    B, C = (torch.randn(2, total, heads, n, generator=g) / n**0.25).to(dtype)
    D = torch.randn(heads, width, generator=g)
    return (x, dt, A, B, C, D), torch.randn(sequences, heads, width, n, generator=g)


def packed(inputs):
    """Those that have a token axis."""
    x, dt, _, B, C, _ = inputs
    return x, dt, B, C


DECAYS = {  # dt_T for one token after another, where A = -1
    "strong": lambda t: 50.0 + 0 * t,
    "to zero at once": lambda t: 1e4 + 0 * t,
    "tiny": lambda t: 1e-7 + 0 * t,
    "strong and weak by turns": lambda t: torch.where(t % 3 == 0, 50.0, 1e-3),
    "strong, then weak": lambda t: torch.where(t < len(t) // 2, 200.0, 1e-3),
    "weak, then strong": lambda t: torch.where(t < len(t) // 2, 1e-3, 200.0),
}


def decayed(inputs, decay):
    """The same inputs under one of DECAYS, x made smaller by as much as dt grew."""
    x, dt, A, B, C, D = inputs
    column = DECAYS[decay](torch.arange(len(x)))
    dt = column.view(-1, *(1,) * (dt.dim() - 1)).expand(dt.shape).contiguous()
    x = x / (20 * column).clamp(min=1.0)[:, None, None]
    return x, dt, torch.full_like(A, -1.0), B, C, D
