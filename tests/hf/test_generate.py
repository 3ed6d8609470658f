"""``generate``: the tokens that transformers' own model chooses, however it is asked."""

import copy

import pytest
import torch

from tests.hf.pairs import IDS, NAMES, mask, other, ours
from tests.numerics.tolerances import assert_within
from zamba_lm.hf import ZambaCache

NEW = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None}
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "several beams": {"num_beams": 4, "num_return_sequences": 3},
    "sampled": {"do_sample": True, "top_k": 10, "temperature": 1.3},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
    "no cache": {"use_cache": False},
}


def both(name, *args, **settings):
    found = []
    for model in (ours(name, gentle=True), other(name, gentle=True)):
        torch.manual_seed(0)
        found.append(model.generate(*args, **settings))
    return found


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_that_transformers_chooses(name, way, side):
    padding = mask(side) if side == "left" else torch.ones_like(IDS)
    mine, their = both(name, IDS, attention_mask=padding, **NEW | WAYS[way])
    assert torch.equal(mine, their) and len(mine[0]) == IDS.shape[1] + 7


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_the_right_is_as_good(name):
    model = ours(name)
    right = model.generate(IDS, attention_mask=mask("right"), **NEW)[:, IDS.shape[1] :]
    for row, kept in enumerate(mask("right").bool()):
        assert torch.equal(right[row], model.generate(IDS[row][kept][None], **NEW)[0, kept.sum() :])


@pytest.mark.parametrize("name", NAMES)
def test_ends_and_scores(name):
    settings = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    mine, their = both(name, IDS, eos_token_id=list(range(30)), pad_token_id=0, do_sample=False, **settings)
    assert torch.equal(mine.sequences, their.sequences) and (mine.sequences[:, -1] == 0).any()
    assert_within("parity", torch.stack(mine.scores), torch.stack(their.scores))
    assert isinstance(mine.past_key_values, ZambaCache)
    assert mine.hidden_states[1][0].shape == (3, 1, 32)


@pytest.mark.parametrize("name", NAMES)
def test_from_embeddings(name):
    model = ours(name)
    found = model.generate(inputs_embeds=model.get_input_embeddings()(IDS), attention_mask=mask("left"), **NEW)
    assert torch.equal(found, model.generate(IDS, attention_mask=mask("left"), **NEW)[:, IDS.shape[1] :])


@pytest.mark.parametrize("chunk", [1, 4, 50])
@pytest.mark.parametrize("name", NAMES)
def test_prompts_in_chunks(name, chunk):
    """Some chunks of the padded rows hold nothing but padding."""
    expected = ours(name).generate(IDS, attention_mask=mask("left"), **NEW)
    assert torch.equal(ours(name).generate(IDS, attention_mask=mask("left"), prefill_chunk_size=chunk, **NEW), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_goes_on(name):
    model = ours(name)
    first = model.generate(IDS, attention_mask=mask("left"), return_dict_in_generate=True, **NEW)
    turn = torch.cat([first.sequences, IDS[:, :5]], dim=1)
    told = torch.cat([mask("left"), torch.ones(3, 12, dtype=torch.long)], dim=1)
    expected = model.generate(turn, attention_mask=told, **NEW)
    kept = copy.deepcopy(first.past_key_values)
    for cache in (first.past_key_values, kept):
        assert torch.equal(model.generate(turn, attention_mask=told, past_key_values=cache, **NEW), expected)


@pytest.mark.parametrize("name", NAMES)
def test_single_steps_by_hand(name):
    model, cache, logits = ours(name), ZambaCache(), []
    with torch.no_grad():
        for part in IDS.split((6, 1, 1, 13), dim=1):
            out = model(part, past_key_values=cache, use_cache=True)
            logits.append(out.logits)
            assert out.past_key_values is cache
    assert_within("paths", torch.cat(logits, dim=1), model(IDS, use_cache=False).logits)
    assert (cache.get_seq_length(), cache.batch_size, len(cache)) == (21, 3, 5)


def test_tokens_are_streamed():
    class Heard(list):
        def put(self, value):
            self.append(value.flatten().tolist())

        def end(self):
            self.append("end")

    heard = Heard()
    found = ours(NAMES[1]).generate(IDS[:1], streamer=heard, **NEW)[0].tolist()
    assert heard == [found[:21], *([token] for token in found[21:]), "end"]
