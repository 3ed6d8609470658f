"""What is particular to rows: their number, their spare slot, tokens that come late."""

from functools import partial

import pytest
import torch

from tests.engine.tiny import model, oracle, prompt
from zamba_lm.engine.engine import Engine, usual_runner
from zamba_lm.engine.request import SamplingParams
from zamba_lm.engine.rows import PENALISED, PLAIN, SAMPLED
from zamba_lm.engine.runner import BUCKETS, Runner, bucket
from zamba_lm.errors import ZambaError
from zamba_lm.ops.dispatch import OPS


def engine(**how):
    return Engine(model(), runner=partial(Runner, capture=False), **how)


def test_buckets_hold_what_they_are_for():
    assert all(size >= n for n in range(1, 400) if (size := bucket(n)))
    assert [bucket(n) for n in (1, 5, 33, 256, 257)] == [1, 6, 40, 256, 320] and list(BUCKETS) == sorted(BUCKETS)
    assert all(bucket(n) <= max(n + 2, 1.5 * n) for n in range(1, 1000)), "few rows work for nobody"


@pytest.mark.parametrize("n", [1, 2, 5, 7, 9, 10, 13])
def test_any_number_of_sequences_decodes(n):
    """Also where the next larger number of rows would be more than there are slots."""
    running = engine(max_batch=n)
    ids = [running.add(prompt(3 + seed % 4, seed), SamplingParams(max_tokens=4)) for seed in range(n)]
    done = running.run()
    assert [done[id].ids for id in ids] == [oracle("zamba2", tuple(prompt(3 + seed % 4, seed)), 4) for seed in range(n)]


def test_tokens_come_a_step_late_and_none_is_lost():
    running = engine()
    running.add(prompt(5), SamplingParams(max_tokens=3))
    steps = []
    while running.busy:
        steps.append([event.token for event in running.step()])
    assert steps == [[], *([token] for token in oracle("zamba2", tuple(prompt(5)), 3))]


def test_a_token_too_many_is_dropped_when_an_end_token_came():
    ids = tuple(prompt(5))
    tokens = oracle("zamba2", ids, 6)
    running = engine(eos_ids=[tokens[2]])
    request = running.add(ids, SamplingParams(max_tokens=6))
    other = running.add(prompt(9), SamplingParams(max_tokens=12))
    done = running.run()
    assert done[request].ids == tokens[: tokens.index(tokens[2]) + 1] and done[request].finish_reason == "stop"
    assert len(running.pool) == 0 and done[other].ids == oracle("zamba2", tuple(prompt(9)), 12, (tokens[2],))


def test_the_way_to_choose_follows_who_is_there():
    running = engine()
    kinds = []
    for params in ({}, {"temperature": 0.7, "seed": 1}, {"repetition_penalty": 1.3}):
        running.add(prompt(4), SamplingParams(max_tokens=9, **params))
        running.step()
        kinds.append(running.runner.rows.kind(len(running.pool.decoding)))
    assert kinds == [PLAIN, SAMPLED, PENALISED]
    running.run()


@torch.inference_mode()
def test_what_happens_on_the_spare_slot_reaches_nobody():
    running = engine(max_batch=4)
    for seed in range(3):
        running.add(prompt(6, seed), SamplingParams(max_tokens=8))
    for step in range(12):
        running.step()
        if step > 1 and running.pool.capacity:
            state = running.pool.state
            state.ssm[:, -1] = state.windows[:, -1] = torch.nan
    assert not running.busy


def test_logits_that_are_no_numbers_are_told(monkeypatch):
    running = engine()
    running.add(prompt(4), SamplingParams(max_tokens=9))
    running.step()
    scores = type(running.model).scores
    monkeypatch.setattr(type(running.model), "scores", lambda *a, **k: scores(*a, **k).fill_(torch.nan))
    with pytest.raises(ZambaError, match="not numbers"):
        for _ in range(3):
            running.step()


def test_a_seed_gives_the_same_tokens_on_rows_and_pass_by_pass():
    params = SamplingParams(max_tokens=12, temperature=1.1, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.2, seed=11)
    answers = []
    for how in (engine(), Engine(model())):
        how.add(prompt(7), params)
        answers.append(next(iter(how.run().values())).ids)
    assert answers[0] == answers[1] and len(set(answers[0])) > 3


@pytest.mark.parametrize("runner", [None, partial(Runner, capture=False)])
def test_states_can_be_narrow(runner):
    running = Engine(model(), ssm_dtype=torch.bfloat16, runner=runner)
    running.add(prompt(9), SamplingParams(max_tokens=5))
    (done,) = running.run().values()
    assert running.pool.state.ssm.dtype == torch.bfloat16
    assert len(done.ids) == 5 and done.finish_reason == "length"


@pytest.mark.parametrize(("have", "runner"), [((7, 0), "Eager"), ((9, 0), "Runner")])
def test_graphs_need_kernels(monkeypatch, have, runner):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: have)
    for op in OPS.values():
        monkeypatch.setattr(op, "_chosen", {})
    assert usual_runner(torch.device("cuda")).__name__ == runner
    assert usual_runner(torch.device("cpu")).__name__ == "Eager"
