"""Rows of token ids drawn from corpus files, on the training device."""

from pathlib import Path

import numpy as np
import torch

from zamba_lm.errors import ZambaError
from zamba_lm.train.corpus import TARGET


class Source:
    """Rows of one kind of text: files matching ``pattern`` (globs divided by "|") cut into windows, each seen once before any is
    seen twice.

    Files that appear while training runs join at the next look. Every pass over a file cuts it at another offset.
    """

    def __init__(self, folder: Path, pattern: str, row: int, device, seed: int):
        self.folder, self.pattern, self.row, self.device = folder, pattern, row, device
        self.random = np.random.default_rng(seed)
        self.files: dict[str, torch.Tensor] = {}
        self.queue: list[tuple[str, int]] = []
        self.look()

    def look(self) -> None:
        """Read files that were not there before."""
        matching = {p for pattern in self.pattern.split("|") for p in self.folder.glob(pattern)}
        found = [p for p in sorted(matching) if p.name not in self.files]
        for path in found:
            self.files[path.name] = torch.from_numpy(np.load(path).view(np.int16)).to(self.device)
            self.queue += self._windows(path.name)
        if found:
            self.random.shuffle(self.queue)
        if not self.files:
            raise ZambaError(f"no corpus file {self.pattern} in {self.folder}; make it with python -m zamba_lm.train.corpus")

    def _windows(self, name: str) -> list[tuple[str, int]]:
        first = int(self.random.integers(self.row))
        return [(name, start) for start in range(first, self.files[name].numel() - self.row - 1, self.row)]

    def draw(self, n: int) -> list[torch.Tensor]:
        """n rows of row + 1 entries, target bit included."""
        rows = []
        for _ in range(n):
            if not self.queue:
                self.queue = [w for name in self.files for w in self._windows(name)]
                self.random.shuffle(self.queue)
            name, start = self.queue.pop()
            rows.append(self.files[name][start : start + self.row + 1])
        return rows


class Mixture:
    """Batches mixed from sources by weight, the same rows in the same order for the same seed and files."""

    def __init__(self, folder: Path, patterns: dict[str, str], row: int, device, seed: int = 0):
        self.sources = {name: Source(folder, p, row, device, seed + i) for i, (name, p) in enumerate(patterns.items())}
        self.random = np.random.default_rng(seed + 1000)

    def look(self) -> None:
        for source in self.sources.values():
            source.look()

    def batch(self, weights: dict[str, float], n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (n, row) and targets (n, row) int64; -1 where a token is not a target."""
        names = list(weights)
        share = np.array([weights[name] for name in names]) / sum(weights.values())
        counts = np.floor(share * n).astype(int)
        for i in self.random.choice(len(names), n - counts.sum(), p=share):
            counts[i] += 1
        rows = [row for name, count in zip(names, counts, strict=True) for row in self.sources[name].draw(int(count))]
        return split_targets(torch.stack(rows))


def split_targets(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From entries with target bits (n, row + 1) int16 to inputs and targets (n, row) int64."""
    entries = rows.long() & 0xFFFF
    ids = entries & ~int(TARGET)
    targets = torch.where(entries[:, 1:] >= int(TARGET), ids[:, 1:], -1)
    return ids[:, :-1].contiguous(), targets
