"""One request on its way: which ids it has, how many of them the model has read."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zamba_lm.engine.request import Request


@dataclass(eq=False)
class Sequence:
    """A request's ids so far. ``read`` counts the ids that its state slot holds; the next pass feeds some of ``ids[read:]``."""

    request: Request
    ids: list[int] = field(init=False)
    read: int = 0
    random: torch.Generator | None = field(init=False, default=None)
    seen: Tensor | None = field(init=False, default=None)  # bool (V,) on the model's device, for the repetition penalty

    def __post_init__(self):
        self.ids = list(self.request.prompt_ids)
        if not self.request.params.greedy:
            self.random = _generator(self.request.params.seed)

    @property
    def unread(self) -> int:
        """Ids the model has not been fed yet."""
        return len(self.ids) - self.read

    @property
    def n_new(self) -> int:
        return len(self.ids) - len(self.request.prompt_ids)

    def next_ids(self, n: int) -> list[int]:
        """The next ``n`` ids to feed."""
        return self.ids[self.read : self.read + n]

    def uniform(self) -> float:
        """The random number in [0, 1) that chooses the next token, from this request's own generator (on the CPU, always)."""
        return 0.0 if self.random is None else torch.rand((), generator=self.random, dtype=torch.float64).item()

    def mark_seen(self, vocab_size: int, device: torch.device) -> Tensor | None:
        """Which tokens the ids hold, kept up to date, if the repetition penalty asks for it."""
        if self.request.params.repetition_penalty == 1:
            return None
        if self.seen is None:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.seen[self.ids] = True
        self.seen[self.ids[-1]] = True
        return self.seen


def _generator(seed: int | None) -> torch.Generator:
    """Seeded; None draws a seed from torch's own generator, so that ``torch.manual_seed`` makes a whole program repeatable."""
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    return torch.Generator().manual_seed(seed)
