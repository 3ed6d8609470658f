"""What can be said of a call before its tensors are seen: made once a packing, as every layer asks the same."""

from dataclasses import dataclass
from functools import cached_property

import torch

from zamba_lm.ops.gpu import multiprocessors
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd.triton import configs
from zamba_lm.ops.ssd.triton.steps import PLANES
from zamba_lm.ops.ssd.triton.tables import n_kept, tables

HEADS = 16  # side by side, where a program takes a chunk of several


@dataclass(frozen=True)
class Plan:
    """Sizes, tables, grids, and the arguments that most kernels share."""

    config: configs.Config
    chunks: torch.Tensor  # these four: see tables.py
    segments: torch.Tensor
    sequences: torch.Tensor
    kept: torch.Tensor
    n_kept: int
    cut: bool  # some sequence has several segments, or may have, so states have to be handed on
    exact: bool
    T: int
    S: int
    H: int
    P: int
    N: int
    G: int

    @cached_property
    def Z(self) -> int:
        """Chunks."""
        return len(self.chunks)

    @cached_property
    def K(self) -> int:
        """Segments."""
        return len(self.segments)

    @cached_property
    def planes(self) -> tuple[int, ...]:
        return (PLANES, self.H, self.Z, self.config.chunk)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The integers that most kernels take, in their order; the last is the size of a plane."""
        return (self.H, self.P, self.N, self.H // self.G, self.Z, self.H * self.Z * self.config.chunk)

    def blocks(self, wide: int) -> dict[str, int | bool]:
        """Constants of kernels that take at most ``wide`` channels of a head."""
        BP, BN = min(wide, configs.power(self.P)), configs.power(self.N)
        whole = {"WHOLE_P": self.P % BP == 0, "WHOLE_N": self.N == BN}
        return {"Q": self.config.chunk, "BP": BP, "BN": BN, "EXACT": self.exact, **whole}

    @cached_property
    def cut_heads(self) -> dict[str, int | bool]:
        return self.blocks(self.config.wide)

    @cached_property
    def whole_heads(self) -> dict[str, int | bool]:
        return self.blocks(configs.power(self.P))

    @cached_property
    def by_segment(self) -> tuple[int, int]:
        return (self.H * -(-self.P // self.cut_heads["BP"]), self.K)

    @cached_property
    def by_chunk(self) -> tuple[int, int]:
        return (self.Z, -(-self.H // HEADS))


Sizes = tuple[int, int, int, int]  # H, P, N, G


def plan(
    dtype: torch.dtype, device: torch.device, packing: Packing, sizes: Sizes, every: int, config: configs.Config | None
) -> Plan:
    key = (plan, dtype, device, sizes, every, config)
    return packing.kept(key, lambda: _plan(dtype, device, packing, sizes, every, config))


def _plan(dtype, device, packing: Packing, sizes: Sizes, every: int, config) -> Plan:
    H, P, N, _ = sizes
    c = config or configs.config(dtype, P, N)
    longest = max(packing.lengths) if packing.known else packing.total
    segment = configs.segment_length(c, packing.lengths, longest, H, multiprocessors(device))
    places = packing.tables(tables, c.chunk, segment, every, device=device)
    kept, exact = n_kept(packing.lengths, every), dtype == torch.float32
    return Plan(c, *places, kept, longest > segment, exact, packing.total, len(packing), *sizes)
