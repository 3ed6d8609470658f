"""What a request gets is what it would get alone, whoever else is there, whenever they come and go."""

import random
from functools import partial

import pytest
import torch

from tests.engine.tiny import VOCAB, model, oracle, prompt
from zamba_lm.engine.eager import Eager
from zamba_lm.engine.engine import Engine
from zamba_lm.engine.request import SamplingParams
from zamba_lm.engine.runner import Runner
from zamba_lm.errors import ZambaError
from zamba_lm.model import kv

FAMILIES = ("zamba2", "zamba")
RUNNERS = {"eager": Eager, "rows": partial(Runner, capture=False)}
LENGTHS = (1, 2, 7, 63, 64, 65, 3, 1, 20)


@pytest.fixture(autouse=True, params=RUNNERS)
def runner(request, monkeypatch):
    """Both ways to run the model; on a CPU the rows of a captured step run uncaptured."""
    monkeypatch.setattr("zamba_lm.engine.engine.usual_runner", lambda device: RUNNERS[request.param])
    return request.param


def requests(lengths=LENGTHS):
    """(prompt, max_tokens) of several sizes."""
    return [(prompt(length, seed), 1 + (3 * seed) % 8) for seed, length in enumerate(lengths)]


def expected(family, wanted, eos_ids=()):
    return [oracle(family, tuple(ids), n, eos_ids) for ids, n in wanted]


def collect(engine, tokens=None):
    """Step to the end: the tokens of every request, by id."""
    tokens = {} if tokens is None else tokens
    while engine.busy:
        for event in engine.step():
            tokens.setdefault(event.request_id, []).append(event.token)
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("max_batch", "chunk"), [(1, 2048), (3, 5), (32, 1), (4, 17), (2, 64), (32, 2048)])
def test_every_request_gets_what_it_gets_alone(family, max_batch, chunk):
    engine = Engine(model(family), max_batch=max_batch, prefill_tokens=chunk)
    wanted = requests()
    ids = [engine.add(p, SamplingParams(max_tokens=n)) for p, n in wanted]
    done = engine.run()
    assert [done[id].ids for id in ids] == expected(family, wanted)
    assert all(done[id].prompt_ids == tuple(p) and done[id].finish_reason == "length" for id, (p, _) in zip(ids, wanted))
    assert not engine.busy and len(engine.pool) == 0


@pytest.mark.parametrize("seed", range(6))
def test_coming_and_going_at_random_changes_nothing(seed):
    """Requests arrive at random steps, some are cancelled at random steps; those that stay get their oracle's tokens."""
    dice = random.Random(seed)
    engine = Engine(model(), max_batch=dice.choice([2, 3, 5]), prefill_tokens=dice.choice([1, 3, 13, 100]))
    coming, tokens, wanted, cancelled = requests([dice.choice(LENGTHS) for _ in range(14)]), {}, {}, set()
    while coming or engine.busy:
        for _ in range(min(len(coming), dice.choice([0, 0, 1, 3]))):
            p, n = coming.pop()
            wanted[engine.add(p, SamplingParams(max_tokens=n))] = (p, n)
        if wanted and dice.random() < 0.15:
            id = dice.choice(list(wanted))
            if engine.cancel(id):
                cancelled.add(id)
        for event in engine.step():
            assert event.request_id not in cancelled
            tokens.setdefault(event.request_id, []).append(event.token)
    assert cancelled, "this seed cancels nobody: choose another"
    for id, (p, n) in wanted.items():
        full = oracle("zamba2", tuple(p), n)
        got = tuple(tokens.get(id, ()))
        assert got == full if id not in cancelled else got == full[: len(got)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_end_token_ends_the_output_and_is_part_of_it(family):
    ids = tuple(prompt(9))
    full = oracle(family, ids, 12)
    end = full[4]
    cut = full[: full.index(end) + 1]
    engine = Engine(model(family), eos_ids=[end])
    engine.add(ids, SamplingParams(max_tokens=12))
    (done,) = engine.run().values()
    assert done.ids == cut == oracle(family, ids, 12, (end,)) and done.finish_reason == "stop"


def test_an_end_token_in_the_prompt_ends_nothing():
    ids = tuple(prompt(9))
    engine = Engine(model(), eos_ids=[ids[-1]])
    engine.add(ids, SamplingParams(max_tokens=3))
    assert next(iter(engine.run().values())).ids == oracle("zamba2", ids, 3, (ids[-1],))


def poison(state):
    """Fill a state with what must never be read; its owners empty a slot when they hand it out."""
    for tensor in (state.windows, state.ssm, *state.kv.stores):
        tensor.fill_(float("nan"))
    state.ages[:] = [7] * len(state)


@pytest.mark.parametrize("family", FAMILIES)
def test_dirty_slots_do_not_reach_the_next_request(family):
    engine = Engine(model(family), max_batch=3, prefill_tokens=10)
    for round in range(3):
        wanted = requests((5, 70, 1))
        ids = [engine.add(p, SamplingParams(max_tokens=n)) for p, n in wanted]
        tokens = collect(engine)
        assert [tuple(tokens[id]) for id in ids] == expected(family, wanted), f"round {round}"
        with torch.inference_mode():
            poison(engine.pool.state)


def test_memory_follows_demand():
    engine = Engine(model(), max_batch=8)
    engine.add(prompt(3), SamplingParams(max_tokens=9))
    engine.step()
    assert engine.pool.capacity == 1
    engine.add(prompt(4), SamplingParams(max_tokens=2))
    engine.step()
    assert engine.pool.capacity == 2
    for seed in range(20):
        engine.add(prompt(5, seed), SamplingParams(max_tokens=2))
    engine.step()
    assert engine.pool.capacity == 8 and len(engine.pool) <= 8
    engine.run()
    engine.add(prompt(3))
    engine.step()
    assert engine.pool.capacity == 1


def test_growing_keeps_what_the_running_sequences_have_read():
    engine, wanted, ids = Engine(model(), max_batch=16, prefill_tokens=6), requests(), []
    tokens = {}
    for p, n in wanted:  # one more each step, so the pool grows while others decode and one reads
        ids.append(engine.add(p, SamplingParams(max_tokens=n)))
        for event in engine.step():
            tokens.setdefault(event.request_id, []).append(event.token)
    assert [tuple(collect(engine, tokens)[id]) for id in ids] == expected("zamba2", wanted)


@pytest.mark.parametrize(
    "params", [{"temperature": 0.8}, {"temperature": 1.2, "top_p": 0.9}, {"temperature": 1.0, "repetition_penalty": 1.3}]
)
def test_a_seed_gives_the_same_output_alone_and_in_any_company(params):
    params = SamplingParams(max_tokens=10, seed=42, **params)
    alone = Engine(model())
    alone.add(prompt(8), params)
    (first,) = alone.run().values()
    engine = Engine(model(), max_batch=3, prefill_tokens=4)
    others = [SamplingParams(max_tokens=n, temperature=1.0) for n in (3, 9, 1, 5)]
    for seed, other in enumerate(others[:2]):
        engine.add(prompt(6, seed), other)
    mine = engine.add(prompt(8), params)
    for seed, other in enumerate(others[2:]):
        engine.add(prompt(12, seed), other)
    assert engine.run()[mine].ids == first.ids


def test_other_seeds_give_other_outputs_and_torch_seeds_the_unseeded():
    def sampled(seed=None):
        engine = Engine(model())
        engine.add(prompt(8), SamplingParams(max_tokens=20, temperature=1.5, seed=seed))
        return next(iter(engine.run().values())).ids

    assert len({sampled(seed) for seed in range(5)}) == 5
    torch.manual_seed(5)
    first, second = sampled(), sampled()
    torch.manual_seed(5)
    assert (sampled(), sampled()) == (first, second) and first != second


def test_repetition_penalty_counts_prompt_and_output():
    ids, penalty, n = prompt(6), 1.7, 12
    engine = Engine(model())
    engine.add(prompt(15), SamplingParams(max_tokens=n))
    mine = engine.add(ids, SamplingParams(max_tokens=n, repetition_penalty=penalty))
    got = engine.run()[mine].ids
    text = list(ids)
    for _ in range(n):
        row = model().logits(torch.tensor([text]))[0, -1]
        for seen in set(text):
            row[seen] = row[seen] / penalty if row[seen] > 0 else row[seen] * penalty
        text.append(int(row.argmax()))
    assert got == tuple(text[len(ids) :])


def test_logprobs_are_those_of_a_whole_pass():
    ids = prompt(10)
    engine = Engine(model(), prefill_tokens=3)
    engine.add(prompt(30), SamplingParams(max_tokens=4))
    mine = engine.add(ids, SamplingParams(max_tokens=6, temperature=2.0, seed=1, logprobs=2))
    done = engine.run()[mine]
    expected = model().logits(torch.tensor([[*ids, *done.ids]]))[0, len(ids) - 1 : -1].log_softmax(-1)
    assert [p.token for p in done.logprobs] == list(done.ids)
    assert [p.logprob for p in done.logprobs] == pytest.approx([row[i].item() for row, i in zip(expected, done.ids)], abs=1e-4)
    assert [[i for i, _ in p.top] for p in done.logprobs] == expected.topk(2).indices.tolist()


class Interrupted(BaseException):
    """Like KeyboardInterrupt: no ``Exception``."""


def broken_off(error):
    def forward(*args, **kwargs):
        raise error

    return forward


@pytest.mark.parametrize("error", [Interrupted, RuntimeError])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_pass_broken_off_in_the_middle_loses_nothing(monkeypatch, error, layer):
    """Some layers have moved on and some have not: nothing of that may stay."""
    engine, wanted = Engine(model(), max_batch=4, prefill_tokens=9), requests()
    ids = [engine.add(p, SamplingParams(max_tokens=n)) for p, n in wanted]
    broken, tokens = model().layers[layer], {}
    for step in range(200):
        if step in (2, 5, 15, 22):
            with monkeypatch.context() as patch, pytest.raises(error):
                patch.setattr(broken, "forward", broken_off(error))
                engine.step()
        for event in engine.step():
            tokens.setdefault(event.request_id, []).append(event.token)
    assert [tuple(tokens[id]) for id in ids] == expected("zamba2", wanted) and not engine.busy


def test_memory_that_runs_out_while_room_grows_leaves_no_half_grown_state(monkeypatch):
    """The first call's keys and values have new room, the second's have not."""
    engine, ids = Engine(model()), tuple(prompt(20))
    engine.add(ids, SamplingParams(max_tokens=5))
    grown, sizes = kv.with_entries, []

    def scarce(old, n, dim):
        sizes.append(n)
        if len(sizes) == 2:
            raise torch.OutOfMemoryError
        return grown(old, n, dim)

    monkeypatch.setattr(kv, "with_entries", scarce)
    (event,) = engine.step()
    assert event.finish_reason == "error" and event.token is None and "20 tokens need" in event.error
    again = engine.add(ids, SamplingParams(max_tokens=5))
    assert engine.run()[again].ids == oracle("zamba2", ids, 5), "the engine lives on"


def test_where_memory_runs_out_fewer_go_together_and_the_one_too_large_fails_alone(monkeypatch):
    """Passes over more than 40 tokens, or over more than two sequences, do not fit."""
    engine, wanted = Engine(model(), max_batch=8), requests()
    scores, answers = type(engine.model).scores, expected("zamba2", wanted)

    def scarce(self, batch, state=None, **how):
        if batch.packing.total > 40 or len(batch) > 2:
            raise torch.OutOfMemoryError
        return scores(self, batch, state, **how)

    monkeypatch.setattr(type(engine.model), "scores", scarce)
    ids = [engine.add(p, SamplingParams(max_tokens=n)) for p, n in wanted]
    done = engine.run()
    for id, (p, _), tokens in zip(ids, wanted, answers):
        assert (done[id].finish_reason, done[id].ids) == (("length", tokens) if len(p) <= 40 else ("error", ()))
    engine.add(prompt(3))
    assert engine.pool.max_slots == 8, "what once did not fit is no limit for ever"


def test_the_prefill_budget_is_kept_and_others_go_on_meanwhile(monkeypatch):
    engine, sizes = Engine(model(), prefill_tokens=10), []
    original, lag = type(engine.model).scores, engine.runner.lag
    first = engine.add(prompt(2), SamplingParams(max_tokens=20))
    engine.step()
    engine.add(prompt(35), SamplingParams(max_tokens=1))
    measured = lambda self, batch, *a, **k: sizes.append(batch.packing.total) or original(self, batch, *a, **k)  # noqa: E731
    monkeypatch.setattr(type(engine.model), "scores", measured)
    events = [engine.step() for _ in range(4 + lag)][lag:]
    assert sizes[:8] == [1, 10, 1, 10, 1, 10, 1, 5], "one token of the first and at most ten of the second, each step"
    assert [[e.request_id == first for e in step] for step in events] == [[True], [True], [True], [True, False]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no tokens"),
        ([1, VOCAB, 2], f"token id {VOCAB} at position 1 .*0 to {VOCAB - 1}"),
        ([1, 2, -1], "token id -1 at position 2"),
        ([1, 2.5], "whole numbers: .*float"),
        ("text", "whole numbers: .*str"),
        (7, "whole numbers: .*int"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_at_once(ids, message):
    engine = Engine(model())
    with pytest.raises(ZambaError, match=message):
        engine.add(ids)
    assert not engine.busy


@pytest.mark.parametrize("option", ["max_batch", "prefill_tokens"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ZambaError, match=f"{option} is 0"):
        Engine(model(), **{option: 0})


def test_cancel_says_whether_there_was_something_to_cancel():
    engine = Engine(model(), max_batch=1, prefill_tokens=4)
    running, reading = engine.add(prompt(3), SamplingParams(max_tokens=5)), None
    waiting = engine.add(prompt(3))
    engine.step()
    assert engine.cancel(waiting) and not engine.cancel(waiting) and not engine.cancel(99)
    assert engine.cancel(running) and not engine.busy
    reading = engine.add(prompt(9))
    engine.step()
    assert engine.cancel(reading) and not engine.busy and engine.step() == []


def test_an_idle_engine_steps_to_nothing():
    engine = Engine(model())
    assert engine.step() == [] and engine.run() == {} and not engine.busy
