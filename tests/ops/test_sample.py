"""sample: the reference by definition, its random numbers by published vectors, and the settings it reads."""

import pytest
import torch

from tests.ops import sampling
from zamba_lm.ops.sample import Settings, greedy, sample, uniform
from zamba_lm.ops.sample.philox import philox

# Known answers of Philox 4x32-10, as its authors' library Random123 publishes them: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert philox(counter, key) == expected
    assert tuple(map(int, philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key))))) == expected


def test_uniform_is_the_same_for_numbers_and_tensors():
    cases = [(seed, drawn) for seed in SEEDS for drawn in (0, 1, 2**32 - 1, 2**32, 2**62)]
    signed = torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed, _ in cases])
    numbers = [uniform(seed, drawn) for seed, drawn in cases]
    tensor = uniform(signed, torch.tensor([drawn for _, drawn in cases]))
    assert tensor.dtype == torch.float64 and tensor.tolist() == numbers
    assert len(set(numbers)) == len(cases) and all(0 <= u < 1 and (u * 2**53).is_integer() for u in numbers)


def test_uniform_is_uniform():
    drawn = torch.arange(20000)
    for numbers in (uniform(torch.tensor(5), drawn), uniform(drawn, torch.tensor(5))):  # along a seed, across seeds
        counts = torch.histc(numbers.float(), 20, 0, 1)
        assert ((counts - 1000) ** 2 / 1000).sum() < 45, "chi squared, 19 degrees of freedom"
        assert abs(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [23, 37, 300, 1000])
def test_tokens_by_definition(vocab, dtype):
    sampling.check_tokens(vocab, rows=16, dtype=dtype, seen_dtype=torch.uint8 if dtype == torch.float16 else torch.bool)


@pytest.mark.parametrize("kind", [kind for kind, row in sampling.KINDS.items() if row.get("temperature")])
def test_draws_follow_the_distribution(kind):
    sampling.check_distribution(37, kind, 20000)


def test_a_row_does_not_depend_on_its_neighbours():
    sampling.check_neighbours(300)


def test_settings_at_their_limits():
    sampling.check_limits()


def test_logits_that_are_not_numbers():
    sampling.check_no_numbers(37)


@pytest.mark.parametrize("vocab", [1, 2, 37, 1000])
def test_greedy(vocab):
    sampling.check_greedy(vocab)


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others():
    x, made = sampling.logits(3, 300).expand(3, -1), Settings.empty(3)
    x[1:] = x[0]
    for slot, seed in enumerate((5, 5, 6)):
        made.put(slot, temperature=1.0, seed=seed)
    texts = []
    for _ in range(12):
        ids = sampling.poisoned(3)
        sample(x, made, ids)
        texts.append(ids.tolist())
    first, again, other = zip(*texts)
    assert first == again != other and len(set(first)) > 1


def test_settings_write_one_slot():
    made = Settings.empty(4)
    plain = made.words_n5.clone()
    made.put(2, temperature=0.5, top_k=3, top_p=0.25, min_p=0.125, repetition_penalty=1.5, seed=2**64 - 1, drawn=9)
    assert sampling.row_of(made, 2) == {"temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "repetition_penalty": 1.5}
    assert made.seed.tolist() == [0, 0, -1, 0] and made.drawn.tolist() == [0, 0, 9, 0]
    assert torch.equal(made.words_n5[[0, 1, 3]], plain[[0, 1, 3]])
    assert sampling.row_of(made, 0) == {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    made.clear(2)
    assert torch.equal(made.words_n5, plain)


def test_shapes_that_do_not_fit_are_refused():
    x, made, ids = sampling.logits(2, 5), Settings.empty(3), sampling.poisoned(2)
    with pytest.raises(ValueError, match="int64"):
        greedy(x, ids.int())
    with pytest.raises(ValueError, match="float dtype"):
        greedy(x.double(), ids)
    with pytest.raises(ValueError, match="whole rows"):
        greedy(x.t().contiguous().t(), ids)
    with pytest.raises(ValueError, match="3 slots"):
        sample(x, made, ids, None, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="3 slots"):
        sample(sampling.logits(4, 5), made, sampling.poisoned(4))
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        sample(x, made, ids, torch.zeros(2, 5, dtype=torch.bool))
