"""Continuous batching: requests join and leave a running batch, one step at a time."""

from collections import OrderedDict, deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from itertools import count
from operator import index

import torch

from zamba_lm.engine.eager import Eager, Landed
from zamba_lm.engine.pool import Pool
from zamba_lm.engine.request import Completion, Event, Request, SamplingParams
from zamba_lm.engine.runner import Flying, Runner
from zamba_lm.engine.sequence import Sequence
from zamba_lm.errors import ZambaError
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.dispatch import table

PREFILL_TOKENS = (2048, 4096)  # elsewhere, and on a GPU, where larger passes were measured to be no faster
CAPTURED = ("linear", "gated_linear", "mamba1_step", "mamba2_step", "attention", "greedy", "sample")  # ops of a captured step


class Engine:
    """Continues many prompts with one model. Token ids in, token ids out.

    A step feeds the newest token of every decoding sequence, and up to ``prefill_tokens`` tokens of the prompts that wait (None:
    as suits the device), first come, first served; a long prompt is read over several steps while the others go on. At most
    ``max_batch`` sequences run at a time, the rest wait. ``eos_ids`` end an output. What a request gets does not depend on its
    neighbours. ``ssm_dtype``: of SSM states, see ``Zamba.new_state``. ``runner``: how the model is run, ``Runner`` (graphs) on a
    GPU and ``Eager`` elsewhere unless told otherwise.
    """

    def __init__(
        self,
        model: Zamba,
        *,
        max_batch: int = 32,
        eos_ids: Items[int] = (),
        prefill_tokens: int | None = None,
        ssm_dtype: torch.dtype = torch.float32,
        runner: Callable[[Zamba, Pool], Eager | Runner] | None = None,
    ):
        if prefill_tokens is None:
            prefill_tokens = PREFILL_TOKENS[model.device.type == "cuda"]
        for name, value in (("max_batch", max_batch), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise ZambaError(f"{name} is {value}, expected a whole number of at least 1")
        self.model, self.eos_ids, self.prefill_tokens = model, frozenset(eos_ids), prefill_tokens
        self.max_batch = max_batch
        self.pool = Pool(model, max_batch, ssm_dtype)
        self.runner = (runner or usual_runner(model.device))(model, self.pool)
        self.waiting: OrderedDict[int, Sequence] = OrderedDict()  # by request id, first come first
        self._flying: deque[Landed | Flying] = deque()  # steps whose tokens are on the way, oldest first
        self._ids = count()

    @property
    def busy(self) -> bool:
        """Is anything left to do?"""
        return bool(self.waiting or len(self.pool)) or not all(sequence.ended for sequence in self._in_flight())

    def add(self, prompt_ids: Items[int], params: SamplingParams | None = None) -> int:
        """Queue a prompt and return its request id. Raises ZambaError for an empty prompt or an id outside the vocabulary."""
        ids = _checked(prompt_ids, self.model.config.vocab_size)
        if not self.busy:
            self.pool.max_slots = self.max_batch  # what once did not fit may fit now
        request = Request(next(self._ids), ids, params or SamplingParams())
        self.waiting[request.id] = Sequence(request)
        return request.id

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One pass over everything that runs: the new tokens, one an event; none yet where a runner's tokens come late. After a
        pass broken off (Ctrl-C) the next step starts from the tokens there were before it.

        Where memory runs out, fewer sequences go on together; one that does not fit alone ends with an error."""
        try:
            return self._step()
        except torch.OutOfMemoryError as error:
            return self._make_do(error)
        except BaseException:
            self._rewind()
            raise

    def _step(self) -> list[Event]:
        started = self._start()
        late = self.runner.lag if started else 0
        return self._land(self._flying.popleft()) if len(self._flying) > late else []

    def run(self) -> dict[int, Completion]:
        """Step until nothing is left: what became of every request, by id."""
        events: dict[int, list[Event]] = {}
        requests = {s.request.id: s.request for s in (*self.pool, *self.waiting.values(), *self._in_flight())}
        while self.busy:
            for event in self.step():
                events.setdefault(event.request_id, []).append(event)
        return {id: completion(requests[id], events[id]) for id in sorted(events)}

    @torch.inference_mode()
    def cancel(self, request_id: int) -> bool:
        """Drop a request wherever it is; False when it is not (or no longer) here."""
        if self.waiting.pop(request_id, None):
            return True
        for sequence in (*self.pool, *self._in_flight()):
            if sequence.request.id == request_id and not sequence.ended:
                self._end(sequence)
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

    def _start(self) -> bool:
        """Start a step; whether there was anything to start."""
        plan = self._plan()
        if not (plan or self.pool.decoding):
            return False
        started = self.runner.run(plan)
        if started is not None:
            self._flying.append(started)
            for sequence in started.sequences:
                sequence.due += 1
                if sequence.n_new + sequence.due >= sequence.request.params.max_tokens:
                    self.pool.release(sequence)  # its last token is on the way
        return True

    def _land(self, flying: Landed | Flying) -> list[Event]:
        """Hand out the tokens of a step. Sequences that have ended since it began get none."""
        events = []
        for sequence, token, logprobs in zip(flying.sequences, *flying.land()):
            sequence.due -= 1
            if not sequence.ended:
                events.append(self._take(sequence, token, logprobs))
        return events

    def _take(self, sequence: Sequence, token: int, logprobs) -> Event:
        """Give a sequence its new token; one that ends leaves its slot."""
        sequence.ids.append(token)
        reason = "stop" if token in self.eos_ids else "length" if sequence.n_new >= sequence.request.params.max_tokens else None
        if reason:
            self._end(sequence)
        return Event(sequence.request.id, token, reason, logprobs)

    def _end(self, sequence: Sequence) -> None:
        sequence.ended = True
        if sequence in self.pool:
            self.pool.release(sequence)

    def _make_do(self, cause: torch.OutOfMemoryError) -> list[Event]:
        """Go on with half as many sequences; without the only one, if it was alone."""
        events = [event for step in self._flying for event in self._land(step)]  # these were on the way before
        together = len(self.pool)
        self._rewind()
        if together > 1:
            self.pool.max_slots = together // 2
            return events
        self.pool.max_slots = self.max_batch
        _, sequence = self.waiting.popitem(last=False)
        sequence.ended = True
        return [*events, Event(sequence.request.id, None, "error", error=too_large(self.model, len(sequence.ids), cause))]

    def _in_flight(self) -> list[Sequence]:
        return [sequence for step in self._flying for sequence in step.sequences]

    def _rewind(self) -> None:
        """Send everything that ran back to the front of the queue, to be read again from its first id up to the newest."""
        flying = self._in_flight()
        self._flying.clear()
        again = {sequence.request.id: sequence for sequence in (*flying, *self.pool.clear()) if not sequence.ended}
        for id in sorted(again, reverse=True):
            again[id].read = again[id].due = 0
            self.waiting[id] = again[id]
            self.waiting.move_to_end(id, last=False)
        self.runner.reset()


def usual_runner(device: torch.device) -> Callable[[Zamba, Pool], Eager | Runner]:
    """Graphs where every op has a kernel that can be captured, pass by pass elsewhere."""
    plain = {implementation for op, implementation, _ in table(device) if op in CAPTURED} != {"triton"}
    return Eager if device.type != "cuda" or plain else Runner


def completion(request: Request, events: Items[Event]) -> Completion:
    """Sum up the events of one request; ``finish_reason`` is None while it has not ended."""
    logprobs = tuple(event.logprobs for event in events if event.logprobs is not None)
    ids = tuple(event.token for event in events if event.token is not None)
    reason = events[-1].finish_reason if events else None
    return Completion(request.prompt_ids, ids, reason, None if request.params.logprobs is None else logprobs)


def too_large(model: Zamba, n: int, cause: torch.OutOfMemoryError) -> str:
    """What to tell of a sequence of ``n`` tokens that does not fit into memory by itself."""
    gib, c = 2**30, model.config
    weights = sum(p.nbytes for p in model.parameters()) / gib
    needs = (n * c.kv_bytes_per_token(model.dtype) + c.state_bytes()) / gib
    free = torch.cuda.mem_get_info(model.device)[0] / gib if model.device.type == "cuda" else None
    there = "" if free is None else f", {free:.2f} GiB of the GPU are free"
    what = f"out of memory: {n} tokens need {needs:.2f} GiB of keys, values and states beside {weights:.2f} GiB of weights"
    return f"{what}{there}; shorten the prompt, lower prefill_tokens or use a larger device ({str(cause)[:80]})"


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
