"""Generation beside transformers' own, token by token: prompts of any length, padded batches, the clamp that theirs forgets."""

from dataclasses import replace
from math import inf

import pytest
import torch

from tests.model.tiny import random_ids, random_model
from tests.numerics.tolerances import TOLERANCES, assert_within
from tests.parity import theirs
from tests.parity.cases import CASES, FULL, PLAIN, case_model
from zamba_lm.model.batch import Batch
from zamba_lm.model.generate import generate
from zamba_lm.model.zamba import Zamba

NAMES = (
    PLAIN,
    FULL,
    "Zamba2: 1 block, no adapters, no RoPE, 1 group",
    "Zamba2: 2 blocks, adapters on the MLP, long-context RoPE, 1 group",
)
NEW = 12
TOLERANCE = TOLERANCES["parity", torch.float32][0]


def lively_model(name):
    """A model whose greedy texts wander, and whose time steps stay above transformers' clamp."""
    model = random_model(replace(CASES[name], dt_limit=(0.0, inf)), seed=3)
    for layer in model.layers:
        layer.mixer.dt_bias += 3
    model.embedding.weight *= 0.15  # or the last token decides alone
    return model


def pair(model, folder, **changes):
    model.save(folder)
    return model, theirs.read(folder, model.config, **changes)


def their_greedy(model, ids_BT, **more):
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids_BT, **settings | more)[:, ids_BT.shape[1] :].tolist()


@pytest.mark.parametrize("length", [1, 2, 5, 33])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_the_same(name, length, tmp_path):
    model, other = pair(lively_model(name), tmp_path)
    prompt = random_ids(1, length, seed=length)
    expected = their_greedy(other, prompt)[0]
    assert len(set(expected)) > 3, "a text that repeats itself proves little"
    assert generate(model, prompt[0].tolist(), NEW) == expected


@pytest.mark.parametrize("name", [PLAIN, FULL])
def test_greedy_texts_of_a_padded_batch_are_the_same(name, tmp_path):
    """They pad on the left and mask; we pack."""
    model, other = pair(lively_model(name), tmp_path)
    prompts = [random_ids(n, seed=n).clamp(min=1).tolist() for n in (1, 4, 9)]
    padded = torch.tensor([[0] * (9 - len(prompt)) + prompt for prompt in prompts])
    expected = their_greedy(other, padded, attention_mask=(padded > 0).long())
    assert greedy_together(model, prompts) == expected


@torch.inference_mode()
def greedy_together(model, prompts):
    state = model.new_state(len(prompts))
    logits = model(Batch.pack(prompts), state, last_only=True)
    steps = [logits.argmax(-1)]
    while len(steps) < NEW:
        steps.append(model.logits(steps[-1][:, None], state)[:, 0].argmax(-1))
    return torch.stack(steps, 1).tolist()


@torch.inference_mode()
def their_cached_logits(model, ids_BT, prompt):
    """Logits of a prompt in one pass and of the rest one token at a time, with their cache."""
    out = model(ids_BT[:, :prompt], use_cache=True)
    parts = [out.logits]
    for at in range(prompt, ids_BT.shape[1]):
        out = model(ids_BT[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
        parts.append(out.logits)
    return torch.cat(parts, 1)


@torch.inference_mode()
def our_cached_logits(model, ids_BT, prompt, stepper=None):
    """The same with our state; ``stepper`` does the single steps if another model should."""
    state = model.new_state(ids_BT.shape[0])
    parts = [model.logits(ids_BT[:, :prompt], state)]
    parts += [(stepper or model).logits(ids_BT[:, at : at + 1], state) for at in range(prompt, ids_BT.shape[1])]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("prompt", [1, 3, 33])
@pytest.mark.parametrize("name", NAMES)
def test_cached_logits_agree(name, prompt, tmp_path):
    model, other = pair(lively_model(name), tmp_path)
    ids = random_ids(2, prompt + 8, seed=prompt)
    assert_within("parity", our_cached_logits(model, ids, prompt), their_cached_logits(other, ids, prompt))


def unclamped(model):
    """The same weights without limits on the time step."""
    free = Zamba(replace(model.config, dt_limit=(0.0, inf))).requires_grad_(False)
    free.load_state_dict(model.state_dict())
    return free


def test_transformers_clamps_whole_passes_and_not_single_steps(tmp_path):
    """So their two routes disagree where a time step is small; ours, given the same mixture of limits, follows them into it."""
    model, other = pair(case_model(FULL), tmp_path)
    free = unclamped(model)
    ids = random_ids(2, 20)
    cached = their_cached_logits(other, ids, 12)
    assert (cached - theirs.logits(other, ids)).abs().max() > 5 * TOLERANCE
    assert_within("parity", our_cached_logits(model, ids, 12, stepper=free), cached)
    for consistent in (model, free):
        assert_within("paths", our_cached_logits(consistent, ids, 12), our_cached_logits(consistent, ids, 20))


def test_without_the_clamp_our_steps_are_theirs(tmp_path):
    model, other = pair(case_model(FULL), tmp_path, time_step_min=1e-30)  # they take its logarithm
    ids = random_ids(2, 12)
    assert_within("parity", our_cached_logits(unclamped(model), ids, 1), their_cached_logits(other, ids, 1))
    with torch.inference_mode():
        assert_within("parity", unclamped(model).logits(ids), theirs.logits(other, ids))
