"""Continuous batching: requests join and leave a running batch, one step at a time."""

from collections import OrderedDict
from collections.abc import Sequence as Items
from itertools import count
from operator import index

import torch
from torch import Tensor

from zamba_lm.engine.pool import Pool
from zamba_lm.engine.request import Completion, Event, Request, SamplingParams
from zamba_lm.engine.sampler import argmax, sample, token_logprobs
from zamba_lm.engine.sequence import Sequence
from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Zamba


class Engine:
    """Continues many prompts with one model. Token ids in, token ids out.

    A step feeds the newest token of every decoding sequence, and up to ``prefill_tokens`` tokens of the prompts that wait, first
    come, first served; a long prompt is read over several steps while the others go on. At most ``max_batch`` sequences run at a
    time, the rest wait. ``eos_ids`` end an output. What a request gets does not depend on its neighbours.
    """

    def __init__(self, model: Zamba, *, max_batch: int = 32, eos_ids: Items[int] = (), prefill_tokens: int = 2048):
        for name, value in (("max_batch", max_batch), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise ZambaError(f"{name} is {value}, expected a whole number of at least 1")
        self.model, self.eos_ids, self.prefill_tokens = model, frozenset(eos_ids), prefill_tokens
        self.pool = Pool(model, max_batch)
        self.waiting: OrderedDict[int, Sequence] = OrderedDict()  # by request id, first come first
        self._ids = count()

    @property
    def busy(self) -> bool:
        """Is anything left to do?"""
        return bool(self.waiting or len(self.pool))

    def add(self, prompt_ids: Items[int], params: SamplingParams | None = None) -> int:
        """Queue a prompt and return its request id. Raises ZambaError for an empty prompt or an id outside the vocabulary."""
        ids = _checked(prompt_ids, self.model.config.vocab_size)
        request = Request(next(self._ids), ids, params or SamplingParams())
        self.waiting[request.id] = Sequence(request)
        return request.id

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One pass over everything that runs: the new tokens, one an event. After a pass broken off (Ctrl-C, out of memory) the
        next step starts from the tokens there were before it."""
        try:
            ready, logits_SV = self._forward(self._plan())
            return [self._take(*one) for one in zip(ready, *self._choose(ready, logits_SV))] if ready else []
        except BaseException:
            self._rewind()
            raise

    def run(self) -> dict[int, Completion]:
        """Step until nothing is left: what became of every request, by id."""
        events: dict[int, list[Event]] = {}
        requests = {s.request.id: s.request for s in (*self.pool, *self.waiting.values())}
        while self.busy:
            for event in self.step():
                events.setdefault(event.request_id, []).append(event)
        return {id: completion(requests[id], events[id]) for id in sorted(events)}

    @torch.inference_mode()
    def cancel(self, request_id: int) -> bool:
        """Drop a request wherever it is; False when it is not (or no longer) here."""
        if self.waiting.pop(request_id, None):
            return True
        for sequence in self.pool:
            if sequence.request.id == request_id:
                self.pool.release(sequence)
                return True
        return False

    def _plan(self) -> list[tuple[Sequence, int]]:
        """Which prompts to read on in this step and how many tokens of each; those that waited get their slots here."""
        budget, plan = self.prefill_tokens, []
        if self.waiting:
            self.pool.make_room(len(self.pool) + len(self.waiting))
        while budget and (sequence := self._reader(len(plan))):
            plan.append((sequence, min(budget, sequence.unread)))
            budget -= plan[-1][1]
        return plan

    def _reader(self, nth: int) -> Sequence | None:
        """The nth sequence that reads its prompt, admitted now if it was waiting and there is a slot."""
        pool = self.pool
        if nth == len(pool.reading) and self.waiting and len(pool) < pool.capacity:
            pool.admit(self.waiting.popitem(last=False)[1])
        return pool.reading[nth] if nth < len(pool.reading) else None

    def _forward(self, plan: list[tuple[Sequence, int]]) -> tuple[list[Sequence], Tensor]:
        """Feed the model; the sequences now due a token and the logits (S, V) it is chosen from, in slot order."""
        ready, n, rows = list(self.pool.decoding), len(self.pool.decoding), []
        if ready:
            rows.append(self._pass(0, [(sequence, 1) for sequence in ready]))
        if plan:
            done = [sequence for sequence, fed in plan if fed == sequence.unread]
            rows.append(self._pass(n, plan)[: len(done)])  # only the last prompt can be unfinished
            for sequence in done:
                self.pool.promote(sequence)
            ready += done
        return ready, torch.cat(rows) if len(rows) == 2 else rows[0] if rows else torch.empty(0)

    def _pass(self, first: int, plan: list[tuple[Sequence, int]]) -> Tensor:
        """Logits (S, V) of the last token of each, fed into the slots from ``first`` on."""
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

    def _take(self, sequence: Sequence, token: int, logprobs) -> Event:
        """Give a sequence its new token; one that ends leaves its slot."""
        sequence.ids.append(token)
        reason = "stop" if token in self.eos_ids else "length" if sequence.n_new >= sequence.request.params.max_tokens else None
        if reason:
            self.pool.release(sequence)
        return Event(sequence.request.id, token, reason, logprobs)

    def _rewind(self) -> None:
        """Send everything that ran back to the front of the queue, to be read again from its first id up to the newest."""
        for sequence in reversed(self.pool.clear()):
            sequence.read = 0
            self.waiting[sequence.request.id] = sequence
            self.waiting.move_to_end(sequence.request.id, last=False)


def completion(request: Request, events: Items[Event]) -> Completion:
    """Sum up the events of one request; ``finish_reason`` is None while it has not ended."""
    logprobs = tuple(event.logprobs for event in events if event.logprobs is not None)
    ids, reason = tuple(event.token for event in events), events[-1].finish_reason if events else None
    return Completion(request.prompt_ids, ids, reason, None if request.params.logprobs is None else logprobs)


def _checked(prompt_ids: Items[int], vocab_size: int) -> tuple[int, ...]:
    try:
        ids = tuple(map(index, prompt_ids))
    except TypeError as error:
        raise ZambaError(f"a prompt is a list of token ids, whole numbers: {error}") from error
    if not ids:
        raise ZambaError("the prompt has no tokens; give at least the beginning-of-sequence token")
    if min(ids) < 0 or max(ids) >= vocab_size:
        at = next(i for i, id in enumerate(ids) if not 0 <= id < vocab_size)
        raise ZambaError(f"token id {ids[at]} at position {at} of the prompt is outside the vocabulary (0 to {vocab_size - 1})")
    return ids
