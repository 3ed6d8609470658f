"""The engine on a GPU: the tokens of the CPU, whatever is batched with what."""

import copy

import pytest

from tests.engine.tiny import model, prompt
from zamba_lm.engine.engine import Engine
from zamba_lm.engine.request import SamplingParams

PARAMS = (
    SamplingParams(max_tokens=9),
    SamplingParams(max_tokens=7, temperature=0.8, seed=1),
    SamplingParams(max_tokens=8, temperature=1.2, top_k=20, top_p=0.9, min_p=0.01, seed=2),
    SamplingParams(max_tokens=5, repetition_penalty=1.4, logprobs=3),
)


def answers(on, max_batch, chunk):
    engine = Engine(on, max_batch=max_batch, prefill_tokens=chunk)
    for seed, params in enumerate(PARAMS * 3):
        engine.add(prompt(1 + 11 * seed, seed), params)
    return [done.ids for done in engine.run().values()]


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["zamba2", "zamba"])
def test_a_gpu_gives_the_tokens_of_the_cpu(family):
    expected = answers(model(family), 32, 2048)
    gpu = copy.deepcopy(model(family)).cuda()
    for max_batch, chunk in [(32, 2048), (3, 17), (1, 64)]:
        assert answers(gpu, max_batch, chunk) == expected
