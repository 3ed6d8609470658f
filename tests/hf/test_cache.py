"""The cache: rows reordered, columns taken back, and drafts that another model or the prompt itself proposes."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tests.hf.pairs import IDS, NAMES, mask, other, ours
from tests.numerics.tolerances import assert_within
from zamba_lm.errors import ZambaError
from zamba_lm.hf import ZambaCache

NEW = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize(
    ("name", "draft", "long"),
    [
        (NAMES[0], "another", True),
        (NAMES[0], "prompt lookup", False),
        (NAMES[1], "itself", True),
        (NAMES[1], "another", False),
        (NAMES[1], "prompt lookup", True),
        (NAMES[1], "one token at a time", False),
    ],
)
def test_assisted_generation_changes_no_token(name, draft, long):
    model, helper = ours(name), ours(name)
    if draft == "another":
        helper.zamba.layers[2].mixer.in_proj.weight *= 1.5
    settings = {"prompt_lookup_num_tokens": 4} if draft == "prompt lookup" else {"assistant_model": helper}
    if draft == "one token at a time":
        helper.generation_config.num_assistant_tokens_schedule = "constant"
        helper.generation_config.num_assistant_tokens = 1
    ids = IDS[:1].repeat(1, 4)[:, :70] if long else IDS[:1]
    new = NEW | {"max_new_tokens": 24}
    assert torch.equal(model.generate(ids, **new, **settings), model.generate(ids, **new))


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_going_back_leaves_no_trace(name, recording):
    """Whatever was taken back, and however often, the next logits are those of the text that is left."""
    model, cache = ours(name), ZambaCache()
    if recording:
        cache.activate_past_recording()
    kept = torch.zeros(2, 0, dtype=torch.long)
    text = torch.randint(1, 61, (2, 200), generator=torch.Generator().manual_seed(1))
    for start, n, back in [(0, 60, 3), (60, 4, 4), (70, 5, 2), (80, 1, 0), (90, 1, 1), (100, 40, 90), (140, 6, 7), (150, 33, 1)]:
        new = text[:, start : start + n]
        with torch.no_grad():
            out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=min(n, 5))
        kept = torch.cat([kept, new], dim=1)
        assert_within("paths", out.logits, model(kept, use_cache=False).logits[:, -min(n, 5) :])
        cache.crop(-back)
        kept = kept[:, : kept.shape[1] - back]
        assert cache.get_seq_length() == kept.shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_going_back_in_a_padded_batch(name):
    model, cache = ours(name), ZambaCache()
    cache.activate_past_recording()
    ids, padding = IDS.repeat(1, 3), torch.cat([mask("left"), torch.ones(3, 42, dtype=torch.long)], dim=1)
    with torch.no_grad():
        model(ids[:, :50], attention_mask=padding[:, :50], past_key_values=cache, use_cache=True, logits_to_keep=4)
        cache.crop(-3)
        out = model(ids[:, 47:], attention_mask=padding, past_key_values=cache, use_cache=True)
    assert_within("paths", out.logits, model(ids, attention_mask=padding, use_cache=False).logits[:, 47:])


def test_going_back_reads_little_again():
    """While past is recorded a copy of the states is at most some tens of columns old."""
    model, cache = ours(NAMES[1]), ZambaCache()
    cache.activate_past_recording()
    with torch.no_grad():
        model(IDS[:1].repeat(1, 20), past_key_values=cache, use_cache=True, logits_to_keep=6)
        cache.crop(-5)
        read = cache.take(model.zamba, IDS[:1, :2], None)[0]
    assert read.shape == (1, 3)


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_of_a_pass_with_a_cache(name):
    model, cache = ours(name), ZambaCache()
    told = {"output_hidden_states": True, "use_cache": True, "past_key_values": cache}
    with torch.no_grad():
        parts = [
            model(part, attention_mask=mask("left")[:, :end], **told) for part, end in zip(IDS.split((9, 1, 11), 1), (9, 10, 21))
        ]
        whole = model(IDS, attention_mask=mask("left"), output_hidden_states=True, use_cache=False)
    kept = mask("left").bool()
    for layer, expected in enumerate(whole.hidden_states):
        assert_within("paths", torch.cat([part.hidden_states[layer] for part in parts], dim=1)[kept], expected[kept])


def test_a_pass_that_fails_leaves_the_cache_as_it_was():
    model, cache = ours(NAMES[1]), ZambaCache()
    with torch.no_grad():
        model(IDS[:, :9], past_key_values=cache, use_cache=True)
        with pytest.raises(ZambaError, match="outside the vocabulary"):
            model(IDS[:, 9:] + 61, past_key_values=cache, use_cache=True)
        found = model(IDS[:, 9:], past_key_values=cache, use_cache=True).logits
    assert_within("paths", found, model(IDS, use_cache=False).logits[:, 9:])


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_given_are_left_alone(name):
    model, cache = ours(name), ZambaCache()
    x = model.get_input_embeddings()(IDS)
    before = x.clone()
    with torch.no_grad():
        model(inputs_embeds=x, past_key_values=cache, use_cache=True)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_cache(name):
    model, cache = ours(name), ZambaCache()
    with torch.no_grad():
        model(IDS, attention_mask=mask("left"), past_key_values=cache, use_cache=True)
        for change, rows in (
            (lambda c: c.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
            (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        ):
            one = copy.deepcopy(cache)
            change(one)
            told = torch.cat([mask("left"), torch.ones(3, 3, dtype=torch.long)], dim=1)[rows]
            found = model(IDS[rows, :3], attention_mask=told, past_key_values=one, use_cache=True).logits
            whole = torch.cat([IDS, IDS[:, :3]], dim=1)[rows]
            assert_within("paths", found, model(whole, attention_mask=told, use_cache=False).logits[:, -3:])


def test_an_empty_cache_of_transformers_will_do():
    model = ours(NAMES[1])
    found = model.generate(IDS, past_key_values=DynamicCache(config=model.config), **NEW)
    assert torch.equal(found, model.generate(IDS, **NEW))


def test_what_no_cache_can_do_is_refused():
    model = ours(NAMES[1])
    theirs, mine = DynamicCache(config=model.config), ZambaCache()
    with torch.no_grad():
        other(NAMES[1])(IDS, past_key_values=theirs, use_cache=True)
        model(IDS, past_key_values=mine, use_cache=True)
    for call, says in (
        (lambda: model(IDS, past_key_values=theirs), "filled DynamicCache"),
        (lambda: model(IDS[:2], past_key_values=mine), "holds 3 rows and the input has 2"),
        (lambda: mine.crop(2), "cannot crop"),
        (lambda: mine.crop(-22), "expected 0 to -21"),
        (lambda: model.generate(IDS, cache_implementation="static", **NEW), "cache_implementation='static'"),
    ):
        with pytest.raises(ZambaError, match=says):
            call()


def test_gradients_are_not_lost_by_a_cache_nobody_asked_for():
    model = ours(NAMES[1]).requires_grad_(True)
    out = model(IDS)
    assert out.past_key_values is None and out.logits.requires_grad
    with torch.no_grad():
        assert isinstance(model(IDS).past_key_values, ZambaCache)
