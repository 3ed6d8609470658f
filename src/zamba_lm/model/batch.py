"""Token ids of several sequences, packed for one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.ops.packing import Packing, on_device


@dataclass(frozen=True)
class Batch:
    """S sequences of new tokens laid end to end: ids_T (int64) and where each sequence lies.

    ``embedded_TD``: what the first layer reads in place of the ids' rows of the embedding; nobody then looks at ids_T.
    """

    ids_T: torch.Tensor
    packing: Packing
    embedded_TD: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.packing)

    @classmethod
    def pack(cls, sequences: Sequence[Sequence[int]], *, device=None) -> "Batch":
        """Pack lists of token ids; raises ZambaError for an empty list."""
        if not sequences or any(len(s) == 0 for s in sequences):
            raise ZambaError("a sequence without tokens cannot be run; give at least the beginning-of-sequence token")
        ids = [i for s in sequences for i in s]
        return cls(on_device(ids, torch.long, device or "cpu"), Packing(map(len, sequences)))

    @classmethod
    def rectangle(cls, ids_BT: torch.Tensor) -> "Batch":
        """B sequences of one length."""
        if ids_BT.dim() != 2 or not ids_BT.numel():
            raise ZambaError(f"token ids have shape {tuple(ids_BT.shape)}, expected (batch, tokens) with at least one of each")
        return cls(ids_BT.reshape(-1), Packing((ids_BT.shape[1],) * ids_BT.shape[0]))

    @classmethod
    def from_cu_seqlens(cls, ids_T: torch.Tensor, cu_seqlens) -> "Batch":
        """From cumulative lengths (S + 1,) that start at 0 and end at T, as variable-length attention takes them."""
        ends = cu_seqlens.tolist() if isinstance(cu_seqlens, torch.Tensor) else list(cu_seqlens)
        lengths = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        if ends[:1] != [0] or ends[-1] != ids_T.numel() or not lengths or min(lengths) < 1:
            raise ZambaError(f"cu_seqlens {ends[:20]} must start at 0, ascend and end at the number of tokens, {ids_T.numel()}")
        return cls(ids_T, Packing(lengths))
