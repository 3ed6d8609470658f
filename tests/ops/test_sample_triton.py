"""sample: the Triton kernels, interpreted on the CPU, by the same checks as the reference."""

import pytest
import torch

from tests.ops import sampling
from tests.ops.test_sample import SEEDS
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.sample import Settings, sample, uniform

triton = pytest.importorskip("triton", reason="Triton is not made for this system")
import triton.language as tl  # noqa: E402

from zamba_lm.ops.sample.triton import argmax  # noqa: E402
from zamba_lm.ops.sample.triton.draw import uniform as kernel_uniform  # noqa: E402


@pytest.fixture(autouse=True)
def kernels():
    with interpreted(), force(sample="triton", greedy="triton"):
        yield


@triton.jit
def uniforms(seeds, counters, numbers):
    i = tl.program_id(0)
    tl.store(numbers + i, kernel_uniform(tl.load(seeds + i), tl.load(counters + i)))


def test_the_kernel_draws_the_same_random_numbers():
    cases = [(seed, drawn) for seed in SEEDS for drawn in (0, 1, 2**32 - 1, 2**32, 2**62)]
    seeds = torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed, _ in cases])
    counters, numbers = torch.tensor([drawn for _, drawn in cases]), torch.full((len(cases),), torch.nan, dtype=torch.float64)
    uniforms[(len(cases),)](seeds, counters, numbers)
    assert numbers.tolist() == [uniform(seed, drawn) for seed, drawn in cases]


@pytest.mark.parametrize(
    ("vocab", "steps", "dtype"),
    [(23, 3, torch.float32), (37, 1, torch.float16), (100, 1, torch.bfloat16), (300, 1, torch.float32)],
)
def test_tokens_by_definition(vocab, steps, dtype):
    sampling.check_tokens(vocab, steps=steps, dtype=dtype, seen_dtype=torch.uint8 if dtype == torch.float16 else torch.bool)


@pytest.mark.parametrize("kind", sampling.KINDS)
def test_tokens_equal_the_references(kind):
    rows, vocab = 4, 60
    words, x = sampling.settings(rows, kinds=[kind]).words_n5, sampling.logits(rows, vocab, seed=8)
    seen = torch.rand(rows, vocab) < 0.2
    found, expected = sampling.poisoned(rows), sampling.poisoned(rows)
    sample(x, Settings(words.clone()), found, seen.clone())
    with force(sample="reference"):
        sample(x, Settings(words.clone()), expected, seen.clone())
    assert torch.equal(found, expected)


def test_a_row_does_not_depend_on_its_neighbours():
    sampling.check_neighbours(37)


def test_settings_at_their_limits():
    sampling.check_limits(draws=6)


def test_logits_that_are_not_numbers():
    sampling.check_no_numbers(37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 2, 37, 1000])
def test_greedy(vocab, dtype):
    sampling.check_greedy(vocab, dtype=dtype)


@pytest.mark.parametrize("rows", [1, 9])
def test_greedy_for_one_row_and_for_many(rows):
    sampling.check_greedy(300, rows=rows)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_a_row_in_parts(parts):
    x = sampling.logits(3, 1000)
    x[0, [100, 900]] = x[1, [499, 500]] = x.max() + 1
    x[2, 700] = torch.nan
    ids = sampling.poisoned(3)
    argmax(x, ids, parts)
    assert ids.tolist() == [100, 499, -1]
