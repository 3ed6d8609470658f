"""Running the model pass by pass, as a CPU does it: what is asked for is there when the call returns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zamba_lm.engine.pool import Pool
from zamba_lm.engine.request import TokenLogprobs
from zamba_lm.engine.sampler import argmax, sample, token_logprobs
from zamba_lm.engine.sequence import Sequence
from zamba_lm.model.batch import Batch
from zamba_lm.model.single import Single
from zamba_lm.model.zamba import Zamba

Plan = list[tuple[Sequence, int]]  # which prompts are read on, and how many tokens of each


@dataclass
class Landed:
    """Sequences and the token each was due."""

    sequences: list[Sequence]
    tokens: list[int]
    logprobs: list[TokenLogprobs | None]

    def land(self) -> tuple[list[int], list[TokenLogprobs | None]]:
        return self.tokens, self.logprobs


class Eager:
    """Runs passes over the pool's slots, one for the sequences that decode and one for those that read. One that decodes alone
    takes a shorter way where the model allows it (``Single``)."""

    lag = 0  # steps by which tokens come late

    def __init__(self, model: Zamba, pool: Pool):
        self.model, self.pool = model, pool
        self._single: Single | None = None  # of the sequence that decoded alone last, until another pass is made

    def run(self, plan: Plan) -> Landed | None:
        """Feed the newest token of every decoding sequence and the planned part of the prompts; None when there was nothing to
        choose, because no prompt was read to its end."""
        ready, rows = list(self.pool.decoding), []
        if ready:
            alone = self._alone(ready[0]) if len(ready) == 1 and not plan else None
            rows.append(self._pass(0, [(sequence, 1) for sequence in ready]) if alone is None else alone)
        if plan:
            n = len(ready)
            done = [sequence for sequence, fed in plan if fed == sequence.unread]
            rows.append(self._pass(n, plan)[: len(done)])  # only the last prompt can be unfinished
            for sequence in done:
                self.pool.promote(sequence)
            ready += done
        if not ready:
            return None
        return Landed(ready, *self._choose(ready, torch.cat(rows) if len(rows) == 2 else rows[0]))

    def reset(self) -> None:
        """Forget what a broken-off pass left behind."""
        self._single = None

    def _alone(self, sequence: Sequence) -> Tensor | None:
        """Logits (1, V) after the newest token of the only sequence, if the model has the shorter way."""
        state = self.pool.view(0, 1)
        state.reserve((sequence.read + 1,))
        if self._single is None or not self._single.serves(state):
            self._single = Single.of(self.model, state)
        if self._single is None:
            return None
        logits_1V = self._single.logits(*sequence.next_ids(1))
        sequence.read += 1
        return logits_1V

    def _pass(self, first: int, plan: Plan) -> Tensor:
        """Logits (S, V) of the last token of each, fed into the slots from ``first`` on."""
        self._single = None
        batch = Batch.pack([sequence.next_ids(n) for sequence, n in plan], device=self.model.device)
        logits_SV = self.model(batch, self.pool.view(first, first + len(plan)), last_only=True)
        for sequence, n in plan:
            sequence.read += n
        return logits_SV

    def _choose(self, ready: list[Sequence], logits_SV: Tensor):
        """Tokens and their logprobs (None where nobody asked), one a row."""
        params = [sequence.request.params for sequence in ready]
        if all(p.plain for p in params):
            return argmax(logits_SV), [None] * len(ready)
        seen = [sequence.mark_seen(logits_SV.shape[1], logits_SV.device) for sequence in ready]
        tokens = sample(logits_SV, params, seen, [sequence.uniform() for sequence in ready])
        return tokens, token_logprobs(logits_SV, tokens, params)
