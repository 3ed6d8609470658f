"""Whole models: a decode step, a prompt's first token, a training step. Each returns rows for every batch and context."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zamba_lm.eval.bench import costs, sides
from zamba_lm.eval.bench.cases import find
from zamba_lm.eval.bench.clock import MOST, forget_peak, measure, measure_answer
from zamba_lm.eval.bench.decoder import TOGETHER, Decoder, EngineDecoder, prepare, random_ids
from zamba_lm.eval.bench.peer import TheirDecoder
from zamba_lm.eval.bench.report import Row
from zamba_lm.eval.bench.sides import Place, Timed
from zamba_lm.eval.bench.subject import Subject
from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.xent import xent


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured where: our model and the peer's on the same weights, sizes to go through. ``ours`` False: only theirs."""

    subject: Subject
    model: Zamba
    theirs: nn.Module | None
    ours: bool = True
    place: Place
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    repeats: int
    state_dtype: str = "float32"
    recompute: bool = False
    merge: bool = True  # whether the model was made ready so
    warm_up: int = 2  # first tokens that are not counted

    def sizes(self) -> Iterator[tuple[int, int]]:
        return product(self.batches, self.contexts)

    def case(self, kind: str, batch: int, context: int):
        """The registered case, unless the model was cut."""
        if self.subject.layers:
            return None
        return find(kind, self.subject.preset, batch, context, self.state_dtype, self.recompute, self.merge)

    def makers(self, batch: int, room: int, **how) -> tuple[Callable[[], Decoder] | None, Callable[[], Decoder] | None]:
        """What makes our decoder, and theirs. ``how``: for ours."""
        ours = partial(EngineDecoder, self.model, batch, room, self.state_dtype, **how)
        return ours if self.ours else None, None if self.theirs is None else partial(TheirDecoder, self.theirs, batch)


def decode(b: Bench) -> list[Row]:
    """Seconds of a decode step for a whole batch that holds ``context`` tokens when the first round starts."""
    rows = []
    for batch, context in b.sizes():
        makers = b.makers(batch, context + 2 * (b.repeats + 2) * MOST, prefill_tokens=TOGETHER)
        runs = [maker and partial(_decode, b, maker, batch, context) for maker in makers]
        cost = costs.decode(b.model.config, batch, context, b.subject.dtype, b.state_dtype)
        case = b.case("decode", batch, context)
        rows += sides.rows(b.place, *runs, batch=batch, context=context, tokens=batch, cost=cost, case=case)
    return rows


def _decode(b: Bench, maker, batch: int, context: int) -> Timed:
    decoder = maker()
    note = prepare(decoder, batch, context, b.model.config.vocab_size, b.subject.seed)
    forget_peak(b.place.device)  # reading the prompts is not decoding
    seconds = measure(decoder.step, b.place.device, b.repeats)
    return seconds, ", ".join(filter(None, [decoder.route, note, _replay(b, decoder)]))


def _replay(b: Bench, decoder: Decoder) -> str:
    """What the captured step takes without the host around it, where there is one."""
    replay = getattr(decoder, "replay", None)
    return f"{measure(replay, b.place.device, b.repeats).median * 1e3:.3g} ms a replay" if replay else ""


def prefill(b: Bench) -> list[Row]:
    """Seconds from prompts of ``context`` tokens, on the host, to the first new token of each on the host."""
    rows = []
    for batch, context in b.sizes():
        ids_BT = random_ids(batch, context, b.model.config.vocab_size, b.subject.seed)
        runs = [maker and partial(_prefill, b, maker, ids_BT) for maker in b.makers(batch, context)]
        cost = costs.prefill(b.model.config, batch, context, b.subject.dtype, b.state_dtype)
        case = b.case("prefill", batch, context)
        rows += sides.rows(b.place, *runs, batch=batch, context=context, tokens=batch * context, cost=cost, case=case)
    return rows


def _prefill(b: Bench, maker, ids_BT: torch.Tensor) -> Timed:
    decoder = maker()

    def first_tokens():
        decoder.start(ids_BT)
        decoder.tokens()

    return measure_answer(first_tokens, b.place.device, b.repeats, decoder.clear, b.warm_up), decoder.route


def train_step(b: Bench) -> list[Row]:
    """Seconds of a forward and a backward pass, without an optimizer."""
    rows = []
    for batch, context in b.sizes():
        ids_BT = random_ids(batch, context + 1, b.model.config.vocab_size, b.subject.seed).to(b.place.device)
        losses = [(b.model if b.ours else None, _our_loss), (b.theirs, _their_loss)]
        runs = [None if model is None else partial(_train, b, model, partial(loss, model, ids_BT)) for model, loss in losses]
        cost = costs.train_step(b.model.config, batch, context, b.subject.dtype, b.recompute)
        case = b.case("train-step", batch, context)
        rows += sides.rows(b.place, *runs, batch=batch, context=context, tokens=batch * context, cost=cost, case=case)
    return rows


def _our_loss(model: Zamba, ids_BT: torch.Tensor) -> torch.Tensor:
    targets_T = ids_BT[:, 1:].flatten()
    return xent(model.hidden(Batch.rectangle(ids_BT[:, :-1])), model.embedding.weight, targets_T) / len(targets_T)


def _their_loss(theirs: nn.Module, ids_BT: torch.Tensor) -> torch.Tensor:
    targets_BT = ids_BT[:, 1:].contiguous()
    return theirs(ids_BT[:, :-1], labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss


def _train(b: Bench, model: nn.Module, loss: Callable[[], torch.Tensor]) -> Timed:
    def step():
        model.zero_grad(set_to_none=True)
        loss().backward()

    model.requires_grad_(True).train()
    parts = _recomputing(model) if b.recompute else []
    try:
        return measure(step, b.place.device, b.repeats), "with recomputation" if b.recompute else ""
    finally:
        for part in parts:
            del part.forward  # the class's own is back
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False).eval()


def _recomputing(model: nn.Module) -> list[nn.Module]:
    """Let every layer (ours: every mixer and every call of a shared block) keep its inputs only and run again on the way back,
    once, from outside."""
    parts = [*(layer.mixer for layer in model.layers), *model.blocks] if isinstance(model, Zamba) else [*model.model.layers]
    for part in parts:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    return parts
