"""What this very device can do: its copy rate and its matrix rate, measured now."""

from dataclasses import dataclass

import torch

from zamba_lm.eval.bench.clock import free_bytes, measure, tidy

ROUNDS = 5


@dataclass(frozen=True)
class Roof:
    """Rates in bytes/s (read and written ones both count) and operations/s (a multiply-add is two)."""

    copy_rate: float
    matrix_rate: float
    copy_bytes: int  # moved by the copy that was timed
    matrix_size: int  # the product was of square matrices of this size
    dtype: str

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> "Roof":
        half = _copy_half(device)
        size = 8192 if device.type == "cuda" else 768
        found = cls(_copy(device, half), _matrix(device, size, dtype), 2 * half, size, str(dtype).removeprefix("torch."))
        tidy(device)
        return found


def _copy_half(device: torch.device) -> int:
    """Bytes to read: a few GB on a GPU, as far as there is room; on a CPU well beyond its caches."""
    if device.type != "cuda":
        return 128 << 20
    return min(4 << 30, (free_bytes(device) or 0) // 4)


def _copy(device: torch.device, half: int) -> float:
    source = torch.randint(0, 255, (half,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * half / measure(lambda: target.copy_(source), device, ROUNDS).median


def _matrix(device: torch.device, size: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))  # zeros would run faster than data does
    return 2 * size**3 / measure(lambda: a @ b, device, ROUNDS).median
