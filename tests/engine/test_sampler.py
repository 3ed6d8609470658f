"""The sampler against brute force: Python loops over one row, straight from the definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zamba_lm.engine import sampler
from zamba_lm.engine.request import Request, SamplingParams
from zamba_lm.engine.sequence import Sequence
from zamba_lm.errors import ZambaError
from zamba_lm.ops.sample import Settings, uniform
from zamba_lm.ops.sample import sample as sample_on_device

V = 11


def rows(n, vocab=V, seed=0, scale=3.0):
    return torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def softmax(logits):
    top = max(logits)
    weights = [math.exp(x - top) if x > -math.inf else 0.0 for x in logits]
    return [w / sum(weights) for w in weights]


def penalised(logits, seen, penalty):
    return [(x / penalty if x > 0 else x * penalty) if i in seen else x for i, x in enumerate(logits)]


def keep(logits, kept):
    return [x if i in kept else -math.inf for i, x in enumerate(logits)]


def by_rank(logits):
    return sorted((i for i, x in enumerate(logits) if x > -math.inf), key=lambda i: -logits[i])


def distribution(logits, p: SamplingParams, seen=()):
    """Probabilities one row is drawn from, by definition (no ties assumed)."""
    logits = penalised(logits, seen, p.repetition_penalty)
    logits = [x / p.temperature for x in logits]
    if p.top_k:
        logits = keep(logits, by_rank(logits)[: p.top_k])
    ranked, probabilities, kept, mass = by_rank(logits), softmax(logits), [], 0.0
    for i in ranked:
        if mass < p.top_p or not kept:
            kept.append(i)
        mass += probabilities[i]
    logits = keep(logits, kept)
    probabilities = softmax(logits)
    logits = keep(logits, [i for i, x in enumerate(probabilities) if x >= p.min_p * max(probabilities) and x > 0])
    return softmax(logits)


def inverse(probabilities, u):
    total = 0.0
    for i, p in enumerate(probabilities):
        total += p
        if total > u:
            return i
    return max(i for i, p in enumerate(probabilities) if p > 0)


CHOICE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
params = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, V + 2),
    top_p=st.floats(0.05, 1),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
)


@given(st.lists(params, min_size=1, max_size=4), st.integers(0, 10**6))
def test_filtered_distribution_equals_brute_force(chosen, seed):
    logits = rows(len(chosen), seed=seed)
    warm = sampler.sharpen(logits, torch.tensor([p.temperature for p in chosen]))
    actual = sampler.filtered(warm, chosen).softmax(-1)
    for row, p, got in zip(logits, chosen, actual):
        expected = distribution(row.tolist(), SamplingParams(**{**vars(p), "repetition_penalty": 1.0}))
        assert got.tolist() == pytest.approx(expected, abs=1e-5)


@given(st.lists(params, min_size=1, max_size=5), st.integers(0, 10**6), st.data())
def test_sampled_tokens_equal_brute_force(chosen, seed, data):
    logits, uniform, seen, marks = rows(len(chosen), seed=seed), [], [], []
    for p in chosen:
        uniform.append(data.draw(st.floats(0, 1, exclude_max=True)))
        seen.append(data.draw(st.sets(st.integers(0, V - 1))))
        marks.append(None if p.repetition_penalty == 1 else torch.tensor([i in seen[-1] for i in range(V)]))
    tokens = sampler.sample(logits, chosen, marks, uniform)
    for row, p, u, ids, token in zip(logits, chosen, uniform, seen, tokens):
        probabilities = distribution(row.tolist(), p, ids)
        near = {inverse(probabilities, min(max(u + d, 0), 1 - 1e-12)) for d in (-1e-5, 0, 1e-5)}  # a float32 rounding away
        assert token in near and probabilities[token] > 0


def test_greedy_rows_are_argmax_and_read_no_random_number():
    logits = rows(4)
    mixed = [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(top_k=3, top_p=0.1),
        SamplingParams(temperature=2.0),
    ]
    tokens = sampler.sample(logits, mixed, [None] * 4, [math.nan, 0.5, math.nan, 0.5])
    assert [tokens[0], tokens[2]] == logits.argmax(-1)[[0, 2]].tolist()


def test_greedy_with_repetition_penalty_is_argmax_of_the_penalised_logits():
    logits = torch.tensor([[4.0, 3.0, -1.0]])
    seen = torch.tensor([True, False, False])
    assert sampler.sample(logits, [SamplingParams(repetition_penalty=1.5)], [seen], [0.0]) == [1]
    assert logits.tolist() == [[4.0, 3.0, -1.0]], "the caller's logits stay"


def test_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    assert sampler.penalise(logits, seen, torch.tensor([2.0])).tolist() == [[1.0, -4.0, 2.0, -2.0, 0.0]]


def test_draws_follow_the_distribution():
    logits = rows(1, vocab=5, scale=1.0)
    n = 4000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = sampler.draw(logits.expand(n, -1), uniform)
    frequency = torch.bincount(drawn, minlength=5) / n
    assert (frequency - logits.softmax(-1)[0]).abs().max() < 0.03


@pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(u):
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [17, 400]] = torch.tensor([0.3, 0.1])
    expected = 400 if u > 0.55 else 17
    assert sampler.draw(logits, torch.tensor([u], dtype=torch.float64)).item() == expected


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-7])
def test_a_temperature_near_zero_is_greedy_and_overflows_nothing(temperature):
    logits = torch.tensor([[3e38, 1.0, -3e38], [0.5, 0.75, 0.25]])
    assert sampler.sample(logits, [SamplingParams(temperature=temperature)] * 2, [None] * 2, [0.999] * 2) == [0, 1]


@pytest.mark.parametrize("peaked", [True, False])
def test_top_p_over_a_large_vocabulary_equals_sorting_it_all(peaked):
    logits = rows(3, vocab=5000, seed=5, scale=4.0 if peaked else 0.1)
    top_p = torch.tensor([0.5, 0.9, 0.99])
    ordered, order = logits.sort(-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before < top_p[:, None])
    actual = logits >= sampler.top_p_cutoff(logits, top_p)
    assert (actual.sum(-1) - kept.sum(-1)).abs().max() <= 1  # one token may lie within a rounding of the border
    assert (actual == kept).float().mean() > 0.9995


def test_equally_likely_tokens_stay_together():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert (sampler.filtered(logits, [SamplingParams(top_k=1)]) > -torch.inf).tolist() == [[False, True, True, False]]


def test_a_row_does_not_depend_on_its_neighbours():
    logits = rows(3, vocab=3000, seed=9)
    chosen = [
        SamplingParams(temperature=0.9),
        SamplingParams(temperature=1.1, top_k=40, top_p=0.9),
        SamplingParams(temperature=2.0, min_p=0.05),
    ]
    uniform = [0.3, 0.7, 0.9]
    together = sampler.sample(logits, chosen, [None] * 3, uniform)
    alone = [sampler.sample(logits[i : i + 1], chosen[i : i + 1], [None], uniform[i : i + 1])[0] for i in range(3)]
    assert together == alone


def test_a_sequence_draws_the_numbers_of_its_seed_one_a_token():
    sequence = Sequence(Request(0, (1, 2), SamplingParams(temperature=1.0, seed=2**64 - 1)))
    for n_new in range(3):
        assert sequence.uniform() == uniform(2**64 - 1, n_new)
        sequence.ids.append(0)


def test_greedy_sequences_use_no_random_number():
    state = torch.get_rng_state()
    assert Sequence(Request(0, (1, 2), SamplingParams())).uniform() == 0
    assert torch.equal(torch.get_rng_state(), state)


@given(st.lists(params, min_size=1, max_size=5), st.integers(0, 10**6))
def test_the_op_that_samples_on_a_device_chooses_the_same_tokens(chosen, seed):
    logits, made = rows(len(chosen), seed=seed), Settings.empty(len(chosen))
    seen = rows(len(chosen), seed=seed + 1) > 0
    for s, p in enumerate(chosen):
        made.put(s, **{name: getattr(p, name) for name in CHOICE}, seed=seed + s)
    ids = torch.full((len(chosen),), -7)
    sample_on_device(logits, made, ids, seen.clone())
    marks = [None if p.repetition_penalty == 1 else mark for p, mark in zip(chosen, seen)]
    assert ids.tolist() == sampler.sample(logits, chosen, marks, [uniform(seed + s, 0) for s in range(len(chosen))])


def test_argmax_takes_the_first_of_equals():
    assert sampler.argmax(torch.tensor([[0.0, 5.0, 5.0], [1.0, 1.0, 1.0]])) == [1, 0]


def test_logits_that_are_not_numbers_are_an_error():
    with pytest.raises(ZambaError, match="not numbers"):
        sampler.argmax(torch.tensor([[0.0, 1.0], [0.0, math.nan]]))


def test_logprobs_are_the_models_own_and_most_likely_first():
    logits = rows(3)
    chosen = [
        SamplingParams(temperature=5.0, top_k=2, repetition_penalty=3.0, logprobs=3),
        SamplingParams(),
        SamplingParams(logprobs=0),
    ]
    first, none, bare = sampler.token_logprobs(logits, [4, 5, 6], chosen)
    expected = logits.log_softmax(-1)
    assert none is None and bare.top == () and bare.logprob == pytest.approx(expected[2, 6].item())
    assert first.token == 4 and first.logprob == pytest.approx(expected[0, 4].item())
    assert [i for i, _ in first.top] == expected[0].argsort(descending=True)[:3].tolist()
    assert [x for _, x in first.top] == pytest.approx(expected[0].sort(descending=True).values[:3].tolist())


def test_more_logprobs_than_tokens_are_all_tokens():
    (row,) = sampler.token_logprobs(rows(1), [0], [SamplingParams(logprobs=50)])
    assert len(row.top) == V and sum(math.exp(x) for _, x in row.top) == pytest.approx(1)
