"""What one rank holds of a model: its sizes, and the rows or columns of every parameter."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig

if TYPE_CHECKING:
    from zamba_lm.parallel.group import Ranks

Cut = tuple[int, tuple[tuple[int, int], ...]]  # dimension, ranges [start, stop) along it


@dataclass(frozen=True)
class Shard:
    """A config with the sizes of one rank: heads, groups, and the widths they make. All else is the whole model's, as are the
    width of a head and what enters a layer."""

    whole: ZambaConfig
    rank: int
    size: int

    def __post_init__(self):
        for problem in _problems(self.whole, self.size):
            raise ZambaError(f"a {self.whole.family} of this shape cannot be split over {self.size} ranks: {problem}")

    @classmethod
    def of(cls, config: ZambaConfig, ranks: "Ranks") -> "Shard":
        return cls(config, ranks.rank, ranks.size)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "whole":  # while a copy or a pickle is being made
            raise AttributeError(name)
        return getattr(self.whole, name)

    @property
    def n_ssm_heads(self) -> int:
        return self.whole.n_ssm_heads // self.size

    @property
    def d_inner(self) -> int:
        return self.whole.d_inner // self.size

    @property
    def n_groups(self) -> int:
        """Groups that my heads read; several ranks hold the same one where there are fewer groups than ranks."""
        return max(1, self.whole.n_groups // self.size)

    @property
    def span(self) -> int:
        """Ranks over which a group's heads are spread."""
        return max(1, self.size // self.whole.n_groups)

    @property
    def conv_dim(self) -> int:
        return self.d_inner + (2 * self.n_groups * self.d_state if self.family == "zamba2" else 0)

    @property
    def n_heads(self) -> int:
        return self.whole.n_heads // self.size

    @property
    def d_ff(self) -> int:
        return self.whole.d_ff // self.size

    def kv_bytes_per_token(self, dtype: object = None) -> int:
        """Those of this rank."""
        return self.whole.kv_bytes_per_token(dtype) // self.size

    def state_bytes(self) -> int:
        """Those of this rank."""
        return self.whole.state_bytes() // self.size


def _problems(c: ZambaConfig, size: int):
    """Yield why a model cannot be split, in words."""
    counts = [("SSM heads", c.n_ssm_heads)]
    if c.n_calls:
        counts += [("attention heads", c.n_heads), ("MLP columns", c.d_ff)]
    for what, n in counts:
        if n % size:
            yield f"{n} {what} do not divide by {size}" + (f", use at most {n} ranks" if n < size else "")
    if c.n_groups % size and size % c.n_groups:
        yield f"neither of {c.n_groups} groups and {size} ranks is a multiple of the other"


# parameters


def cut(name: str, whole: Tensor, shard: Shard) -> Tensor:
    """My share of a parameter of the whole model; the parameter itself where every rank has it all."""
    found = place(name, shard)
    if found is None or shard.size == 1:
        return whole
    dim, ranges = found
    parts = [whole.narrow(dim, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def place(name: str, s: Shard) -> Cut | None:
    """Where my share lies; None for what every rank has whole (embedding, norms of what enters a layer, links, adapters' A)."""
    *_, owner, last = ["", *name.removesuffix(".weight").split(".")]
    if owner == "mixer":
        rows = (_mamba2_rows if s.family == "zamba2" else _mamba1_rows)(s)
        return (1, _runs(s, [0], s.d_inner)) if last == "out_proj" else (0, rows[last])
    if last == "B":  # of an adapter, laid out like the projection that it corrects
        last = "gate_up" if owner == "gate_up" else "q"
    attention = s.n_heads * s.head_dim
    match last:
        case "qkv":
            return 0, _runs(s, [0, attention * s.size, 2 * attention * s.size], attention)
        case "q":
            return 0, _runs(s, [0], attention)
        case "gate_up":
            return 0, _runs(s, [0, s.d_ff * s.size], s.d_ff)
        case "o":
            return 1, _runs(s, [0], attention)
        case "down":
            return 1, _runs(s, [0], s.d_ff)
    return None


def _runs(s: Shard, starts: list[int], width: int) -> tuple[tuple[int, int], ...]:
    """My ``width`` of each stretch that begins at one of ``starts``."""
    return tuple((start + s.rank * width, start + (s.rank + 1) * width) for start in starts)


def _mamba2_rows(s: Shard) -> dict[str, tuple[tuple[int, int], ...]]:
    inner, maps = s.whole.d_inner, s.whole.n_groups * s.d_state
    first, mine = (s.rank // s.span) * s.n_groups * s.d_state, s.n_groups * s.d_state

    def channels(start: int):
        """x, B and C, which lie one after the other from ``start`` on."""
        B, C = start + inner + first, start + inner + maps + first
        return *_runs(s, [start], s.d_inner), (B, B + mine), (C, C + mine)

    heads, inside = _runs(s, [0], s.n_ssm_heads), _runs(s, [0], s.d_inner)
    return {
        "in_proj": (*inside, *channels(inner), *_runs(s, [2 * inner + 2 * maps], s.n_ssm_heads)),  # z, x, B, C, dt
        "conv_weight": channels(0),
        "conv_bias": channels(0),
        "dt_bias": heads,
        "A_log": heads,
        "D": heads,
        "norm_weight": inside,
    }


def _mamba1_rows(s: Shard) -> dict[str, tuple[tuple[int, int], ...]]:
    heads, inside = _runs(s, [0], s.n_ssm_heads), _runs(s, [0], s.d_inner)
    by_head = dict.fromkeys(("x_proj", "dt_proj", "dt_bias", "A_log", "D"), heads)
    return by_head | {"in_proj": _runs(s, [0, s.whole.d_inner], s.d_inner), "conv_weight": inside, "conv_bias": inside}
