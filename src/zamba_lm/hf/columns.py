"""The columns that rows of a cache were given, kept so that they can be read again."""

from collections.abc import Callable, Sequence

import torch

Part = tuple[torch.Tensor, torch.Tensor | None]  # ids (B, n) or embeddings (B, n, D), and a mask (B, n) or None: all count


class Columns:
    """Inputs of B rows, column by column; ``len`` counts columns."""

    def __init__(self):
        self._parts: list[Part] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        self._parts.append((x, mask))
        self._length += x.shape[1]

    def cut(self, length: int) -> None:
        """Keep the first ``length`` columns."""
        kept, self._parts, self._length = self._between(0, length), [], 0
        for x, mask in kept:
            self.append(x, mask)

    def select(self, rows: Sequence[int]) -> None:
        """Have these rows, in this order."""
        rows = list(rows)
        whole = self._between(0, self._length)
        self._parts = [(x[rows], None if mask is None else mask[rows]) for x, mask in whole]

    def since(self, start: int, embed: Callable[[torch.Tensor], torch.Tensor]) -> Part:
        """The columns from ``start`` on as one input; ids become embeddings by ``embed`` where some are embeddings already."""
        if self._parts and start == self._length - self._parts[-1][0].shape[1]:
            return self._parts[-1]
        parts = self._between(start, self._length)
        if len({x.dim() for x, _ in parts}) > 1:
            parts = [(x if x.dim() == 3 else embed(x), mask) for x, mask in parts]
        x = torch.cat([x for x, _ in parts], dim=1)
        if all(mask is None for _, mask in parts):
            return x, None
        whole = [x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask != 0 for x, mask in parts]
        return x, torch.cat(whole, dim=1)

    def _between(self, start: int, stop: int) -> list[Part]:
        found, end = [], self._length
        for x, mask in reversed(self._parts):  # what is wanted mostly stands at the end
            begin = end - x.shape[1]
            if end <= start:
                break
            part = slice(max(start - begin, 0), max(min(stop, end) - begin, 0))
            if part.start < part.stop:
                found.append((x[:, part], None if mask is None else mask[:, part]))
            end = begin
        return found[::-1]
