"""One request on its way: which ids it has, how many of them the model has read."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zamba_lm.engine.request import Request, SamplingParams
from zamba_lm.ops.sample.philox import uniform


@dataclass(eq=False)
class Sequence:
    """A request's ids so far. ``read`` counts the ids that its state slot holds; the next pass feeds some of ``ids[read:]``."""

    request: Request
    ids: list[int] = field(init=False)
    read: int = 0
    due: int = field(init=False, default=0)  # tokens that are on their way
    ended: bool = field(init=False, default=False)
    seed: int = field(init=False)
    seen: Tensor | None = field(init=False, default=None)  # bool (V,) on the model's device, for the repetition penalty

    def __post_init__(self):
        self.ids = list(self.request.prompt_ids)
        self.seed = _seed(self.request.params)

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
        """The random number in [0, 1) that chooses the next token: the seed's ``n_new``-th, the same on every device."""
        return 0.0 if self.request.params.greedy else uniform(self.seed, self.n_new)

    def mark_seen(self, vocab_size: int, device: torch.device) -> Tensor | None:
        """Which tokens the ids hold, kept up to date, if the repetition penalty asks for it."""
        if self.request.params.repetition_penalty == 1:
            return None
        if self.seen is None:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.seen[self.ids] = True
        self.seen[self.ids[-1]] = True
        return self.seen


def _seed(params: SamplingParams) -> int:
    """The seed asked for; None draws one from torch's own generator, so that ``torch.manual_seed`` repeats a whole program."""
    if params.greedy:
        return 0
    return int(torch.randint(2**63 - 1, ())) if params.seed is None else params.seed
