"""Running the model on a GPU: one captured graph decodes a token for every sequence, and the host reads it a step late.

A step of decoding is a few hundred small kernels. Captured once for each number of rows, they are replayed with a single call,
sampling included, and the chosen ids stay on the GPU as the next step's input. The host learns them while the next step already
runs, so it never makes the GPU wait.

Prompts are read by graphs too, one for each of a few sizes, captured when a size comes up for the second time: launching a pass
takes the host longer than reading 2048 tokens takes the GPU (docs/decisions/0009-graphs-for-prompts.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from zamba_lm.engine.eager import Plan
from zamba_lm.engine.pool import Pool
from zamba_lm.engine.request import TokenLogprobs
from zamba_lm.engine.rows import Rows, way
from zamba_lm.engine.sampler import no_numbers, token_logprobs
from zamba_lm.engine.sequence import Sequence
from zamba_lm.engine.tray import Tray, tray_for
from zamba_lm.model.batch import Batch
from zamba_lm.model.pack import freeze_constants
from zamba_lm.model.state import State
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.ahead import compiling
from zamba_lm.ops.dispatch import table
from zamba_lm.ops.packing import Packing
from zamba_lm.parallel.group import holds_graphs
from zamba_lm.parallel.model import ParallelZamba

FRAMED = ("conv", "ssd", "scan", "attention")  # ops whose kernels find lengths on the device
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)


def bucket(n: int) -> int:
    """Rows that a graph for ``n`` sequences has: few sizes, so that few graphs are captured."""
    return next((size for size in BUCKETS if size >= n), -(-n // 64) * 64)


@dataclass
class Flying:
    """Tokens on their way from the GPU."""

    sequences: list[Sequence]
    ids: Tensor  # pinned memory on the host
    logits: dict[int, Tensor]  # of the rows whose log probabilities are asked for
    arrival: torch.cuda.Event | None

    def land(self) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Wait for the tokens, and the log probabilities of the rows that ask for them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        tokens = self.ids.tolist()
        if min(tokens) < 0:
            raise no_numbers()
        found: list[TokenLogprobs | None] = [None] * len(tokens)
        for row, logits_V in self.logits.items():
            found[row] = token_logprobs(logits_V[None].float(), [tokens[row]], [self.sequences[row].request.params])[0]
        return tokens, found


@dataclass
class Captured:
    """One decoding step for a number of rows. ``graph`` is None where nothing is captured: then ``step`` runs anew each time."""

    step: Callable[[], Tensor]
    graph: torch.cuda.CUDAGraph | None
    logits_SV: Tensor | None = None

    def run(self) -> Tensor:
        if self.graph is None:
            return self.step()
        self.graph.replay()
        assert self.logits_SV is not None
        return self.logits_SV


class Runner:
    """Runs decoding as graphs over ``Rows``, prompts pass by pass.

    ``capture=False`` runs the very same steps without graphs, on any device. Row r is slot r of the pool. Tokens come ``lag``
    steps late: a sequence that ended in the meantime has been given one token too many, which is dropped.
    """

    lag = 1

    def __init__(self, model: Zamba, pool: Pool, *, capture: bool = True):
        freeze_constants(model)
        self.model, self.pool, self.capture = model, pool, capture
        pool.spare, pool.moved = 1, self._moved
        if isinstance(model, ParallelZamba):
            holds_graphs(self)
        self._framed = reads_frames(model)
        self._compiled = False
        self._rows: Rows | None = None
        self._version = -1
        self._forget()

    def run(self, plan: Plan) -> Flying | None:
        """Start a decoding step for every sequence that decodes and a pass over the planned part of the prompts. None when no
        token is due."""
        if plan and self.capture and not self._compiled:
            self._compile(plan)
        ready = list(self.pool.decoding)
        logits: list[Tensor] = []
        if ready:
            logits.append(self._decode(ready))
        if plan:
            logits += self._read(plan, ready)
        return self._send(ready, logits) if ready else None

    def reset(self) -> None:
        """Forget what a broken-off pass left behind."""
        self._rows, self._version = None, -1
        self._forget()

    @property
    def rows(self) -> Rows:
        """The rows of the pool's present state; made anew, and every graph with them, when its memory has moved."""
        state = self.pool.state
        if self._rows is None or self._rows.state is not state or len(self._rows) != len(state):
            self._rows = Rows.like(self._rows, state, self.model)
            self._forget()
        if self._version != state.version:
            self._forget()
            self._version = state.version
        return self._rows

    def _forget(self) -> None:
        """Drop every graph, and with the last one the memory that they shared."""
        self._graphs: dict[tuple[int, str], Captured] = {}
        self._trays: dict[tuple[int, int, bool], tuple[Tray, Captured]] = {}
        self._memory: Any = None

    def _decode(self, ready: list[Sequence]) -> Tensor:
        """Logits (S, V) of one more token for each."""
        n, state = len(ready), self.pool.state
        state.reserve(tuple(age + 1 for age in state.lengths[:n]))
        rows = self.rows
        rows.occupy(n)
        logits_SV = self._graph(min(bucket(n), len(rows)), rows.kind(n)).run()
        for slot, sequence in enumerate(ready):
            state.ages[slot] += 1
            sequence.read += 1
        return logits_SV[:n]

    def _read(self, plan: Plan, ready: list[Sequence]) -> list[Tensor]:
        """Feed prompts; those read to the end join ``ready``, with their first token chosen."""
        first = len(ready)
        logits_SV = self._pass([sequence.next_ids(fed) for sequence, fed in plan])
        done = [sequence for sequence, fed in plan if fed == sequence.unread]
        for sequence, fed in plan:
            sequence.read += fed
        rows = self.rows
        for row, sequence in enumerate(done, first):
            rows.seat(row, sequence)
            self.pool.promote(sequence)
        ready += done
        if done:
            rows.choose(first, first + len(done), logits_SV[: len(done)])
        return [logits_SV[: len(done)]]

    def _pass(self, ids: list[list[int]]) -> Tensor:
        """Logits (S, V), or more rows, of the last token of each list, fed to the first of those who read."""
        first = len(self.pool.decoding)
        view = self.pool.view(first, first + len(ids))
        size = self._size(ids, view)
        if size is None:
            return self.model.scores(Batch.pack(ids, device=self.model.device), view, last_only=True)
        view.reserve(tuple(age + len(one) for age, one in zip(view.lengths, ids, strict=True)))
        tray, reading = self._tray(size)
        tray.fill(ids, first)
        logits_SV = reading.run()
        view.advance(Packing(map(len, ids)))
        return logits_SV

    def _size(self, ids: list[list[int]], view: State) -> tuple[int, int, bool] | None:
        """Of the tray that these are read from, None when they are read without one."""
        return tray_for(len(ids), sum(map(len, ids)), not any(view.lengths)) if self._framed else None

    def _send(self, ready: list[Sequence], logits: list[Tensor]) -> Flying:
        """Start the tokens' way to the host."""
        n = len(ready)
        asked = {}
        for row, logits_V in zip(count(), (one for part in logits for one in part)):
            if ready[row].request.params.logprobs is not None:
                asked[row] = logits_V.clone()
        ids, arrival = self.rows.ids_S[:n], None
        if ids.is_cuda:
            host = torch.empty(n, dtype=ids.dtype, pin_memory=True)
            host.copy_(ids, non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record()
        else:
            host = ids.clone()
        return Flying(ready, host, asked, arrival)

    def _moved(self, source: int, target: int) -> None:
        if self._rows is not None:
            self._rows.move(source, target)

    # graphs

    def _graph(self, n: int, kind: str) -> Captured:
        if (n, kind) not in self._graphs:
            self._graphs[n, kind] = self._captured(n, kind)
        return self._graphs[n, kind]

    def _tray(self, size: tuple[int, int, bool]) -> tuple[Tray, Captured]:
        """The tray of this size, and how it is read: kernel by kernel at first, which compiles them, as a graph from then on."""
        state = self.rows.state  # graphs are void where its memory has moved
        if size not in self._trays:
            tray = Tray(state, *size)
            self._trays[size] = tray, Captured(lambda: self.model.scores(tray.batch, tray, last_only=True), None)
        elif self.capture and self._trays[size][1].graph is None:
            tray, reading = self._trays[size]
            self._trays[size] = tray, self._record(reading.step)
        return self._trays[size]

    def _compile(self, plan: Plan) -> None:
        """Have the kernels of a first pass and of the first step of decoding compiled all at once: the first token comes seconds
        earlier. Neither is really run, but torch's own share of it is, so the slots, which are fresh, are emptied again."""
        self._compiled = True
        ids = [sequence.next_ids(fed) for sequence, fed in plan]
        view = self.pool.view(0, len(ids))
        size = self._size(ids, view)
        rows, kind = self.rows, way([sequence.request.params for sequence, _ in plan])
        with compiling(self.model.device):
            if size is None:
                logits_SV = self.model.scores(Batch.pack(ids, device=self.model.device), view, last_only=True)
            else:
                tray = Tray(rows.state, *size)
                logits_SV = self.model.scores(tray.batch, tray, last_only=True)
            with rows.vacant():
                rows.choose(0, 1, logits_SV[:1], kind)
                self._step(min(bucket(len(plan)), len(rows)), kind)()
        for memory in (view.windows, view.ssm):
            memory.zero_()
        rows.state.ages[: len(ids)] = [0] * len(ids)

    def _step(self, n: int, kind: str) -> Callable[[], Tensor]:
        """One more token for the first ``n`` rows."""
        rows = self.rows
        view, packing = rows.view(n), Packing((1,) * n)

        def step() -> Tensor:
            batch = Batch(rows.ids_S[:n], packing, view.open(self.model.embedding.weight))
            logits_SV = self.model.scores(batch, view, last_only=True)
            rows.choose(0, n, logits_SV, kind)
            return logits_SV

        return step

    def _captured(self, n: int, kind: str) -> Captured:
        rows, step = self.rows, self._step(n, kind)
        if not self.capture:
            return Captured(step, None)
        with rows.vacant():  # kernels are compiled by running once, on the spare slot alone
            step()
        return self._record(step)

    def _record(self, step: Callable[[], Tensor]) -> Captured:
        """Capture a step that has run before. All graphs share one memory."""
        graph = torch.cuda.CUDAGraph()
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._memory):
            logits_SV = step()
        return Captured(step, graph, logits_SV)


def reads_frames(model: Zamba) -> bool:
    """Whether passes over prompts can be captured: every kernel must find lengths on the device."""
    return {implementation for op, implementation, _ in table(model.device) if op in FRAMED} == {"triton"}
