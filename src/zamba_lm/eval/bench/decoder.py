"""What is timed on our side: a batch of sequences in the engine, which reads prompts and decodes as it does for any user."""

from typing import Protocol

import torch

from zamba_lm.engine.engine import Engine
from zamba_lm.engine.request import SamplingParams
from zamba_lm.model.dtypes import as_dtype
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.packing import Packing

REAL = 2048  # tokens of context that are really read; longer ones are filled with random numbers, which time cannot tell apart
TOGETHER = 32768  # tokens of prompts read in one pass where reading them is not what is timed
ENDLESS = SamplingParams(max_tokens=10**9)


class Decoder(Protocol):
    """``batch`` sequences of one length, greedy. Both sides of a comparison are one."""

    route: str

    def start(self, ids_BT: torch.Tensor) -> None:
        """Forget everything, read these prompts and choose the first tokens."""

    def fill(self, context: int) -> None:
        """Forget everything and be as after ``context`` tokens, with random keys, values and states."""

    def step(self) -> None:
        """Decode one token for every sequence; enqueued, not waited for."""

    def tokens(self) -> torch.Tensor:
        """Tokens (B, n) chosen since the start, on the CPU."""

    def clear(self) -> None:
        """Forget everything."""


class NoRoom(RuntimeError):
    """A prompt did not fit into memory, with the engine's words about it."""


def prepare(decoder: Decoder, batch: int, context: int, vocab: int, seed: int) -> str:
    """Bring a decoder to ``context`` tokens; says how, for the table."""
    if context > REAL:
        decoder.fill(context)
        return "context of random numbers"
    decoder.start(random_ids(batch, context, vocab, seed))
    return ""


def random_ids(batch: int, tokens: int, vocab: int, seed: int) -> torch.Tensor:
    """Ids (B, T) on the CPU, the same for both sides."""
    return torch.randint(0, vocab, (batch, tokens), generator=torch.Generator().manual_seed(seed))


class EngineDecoder:
    """Our decoder: the engine, with graphs on a GPU. ``room``: tokens a sequence that is filled will come to, at most.
    ``prefill_tokens``: the engine's, 0 for its default."""

    def __init__(self, model: Zamba, batch: int, room: int, state_dtype: str = "float32", *, prefill_tokens: int = 0):
        how = {"prefill_tokens": prefill_tokens or None, "ssm_dtype": as_dtype(state_dtype)}
        self.engine = Engine(model, max_batch=batch, **how)
        self.batch, self.room = batch, room
        self.route = "CUDA graphs" if getattr(self.engine.runner, "capture", False) else "eager"
        self.chosen: dict[int, list[int]] = {}

    def start(self, ids_BT):
        self.clear()
        self.chosen = {self.engine.add(ids, ENDLESS): [] for ids in ids_BT.tolist()}
        while not all(self.chosen.values()):
            self.step()

    def step(self):
        events = self.engine.step()
        if self.engine.pool.max_slots < self.batch:  # the engine makes do with fewer at a time; that is another measurement
            raise NoRoom(f"{self.batch} sequences of this length do not fit into memory together")
        for event in events:
            if event.token is None:
                raise NoRoom(event.error)
            self.chosen[event.request_id].append(event.token)

    def tokens(self):
        fewest = min(map(len, self.chosen.values()))
        return torch.tensor([tokens[:fewest] for tokens in self.chosen.values()])

    def clear(self):
        for request in self.chosen:
            self.engine.cancel(request)
        while self.engine.busy:
            self.engine.step()
        self.chosen = {}

    @property
    def replay(self):
        """The newest captured step alone, None where there is none. Afterwards this decoder is of no more use."""
        captured = [step.graph for step in getattr(self.engine.runner, "_graphs", {}).values() if step.graph is not None]
        return captured[-1].replay if captured else None

    @torch.inference_mode()
    def fill(self, context):
        self.start(random_ids(self.batch, 2, self.engine.model.config.vocab_size, seed=0))
        state = self.engine.pool.view(0, self.batch)
        state.reserve((max(self.room, context + 1),) * self.batch)
        for tensor in (state.windows, state.ssm, *state.whole.kv.stores):  # no other slot is in use
            tensor.normal_()
        grown = context - max(state.lengths)
        state.advance(Packing((grown,) * self.batch))
        if (rows := getattr(self.engine.runner, "rows", None)) is not None:
            rows.past_S[: self.batch] += grown
