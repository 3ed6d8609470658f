"""One token of one sequence by the shorter way: the logits and the memory of the model's own pass, or not at all."""

from dataclasses import replace

import pytest
import torch

from tests.model.tiny import CONFIGS, ZAMBA2, random_ids, random_model
from tests.numerics.tolerances import TOLERANCES, assert_within
from zamba_lm.model.batch import Batch
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.int8rows import expand, quantize
from zamba_lm.model.pack import pack_weights
from zamba_lm.model.parts import Linear
from zamba_lm.model.ready import for_training, ready
from zamba_lm.model.single import Single
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.linear import cpu

EVERYTHING = CONFIGS["zamba2, everything"]
SHAPES = {name: config for name, config in CONFIGS.items() if config.family == "zamba2"} | {
    "limits": replace(CONFIGS["zamba2, plain"], dt_limit=(0.5, 0.9), d_conv=2),
    "adapters on the MLP": ZambaConfig(**ZAMBA2, adapter_rank=3, rope_theta=1e4),
}


def after_prompt(model, n=2, slot=1):
    """One of ``n`` slots, and a copy of it, behind the same five tokens."""
    state = model.new_state(n).slots(slot, slot + 1)
    model(Batch.pack([random_ids(5).tolist()]), state)
    return state, state.clone()


@torch.inference_mode()
def both(model, tokens):
    """Logits by the model's pass and by the shorter way, (tokens, V) each, and the memory of each."""
    usual, state = after_prompt(model)
    expected = [model(Batch.pack([[token]]), usual) for token in tokens]
    state.reserve((5 + len(tokens),))
    single = Single.of(model, state)
    return torch.cat(expected), torch.cat([single.logits(token) for token in tokens]), usual, state


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_memory_are_those_of_a_pass(name):
    model = pack_weights(random_model(SHAPES[name]))
    expected, found, usual, state = both(model, random_ids(9, seed=3).tolist())
    assert_within("paths", found, expected)
    assert_within("state", state.ssm, usual.ssm)
    assert_within("paths", state.windows, usual.windows)
    assert state.lengths == usual.lengths == [14]
    for ours, theirs in zip(state.whole.kv.stores, usual.whole.kv.stores, strict=True):
        assert_within("paths", ours[:, 0, :, :14], theirs[:, 1, :, :14])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["zamba2, everything", "adapters on the MLP"])
def test_a_bfloat16_model_is_as_near_to_exact_as_by_a_pass(name, packed, monkeypatch):
    monkeypatch.setattr(cpu, "SMALLEST", 1 if packed else 1 << 30)
    model, tokens = random_model(SHAPES[name], dtype=torch.bfloat16), random_ids(9, seed=3).tolist()
    for weight in (model.embedding.weight, *(m.weight for m in model.modules() if isinstance(m, Linear))):
        weight.copy_(expand(*quantize(weight)))
    wide = random_model(SHAPES[name])
    wide.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    exact = both(pack_weights(wide), tokens)[0]
    pack_weights(model)
    assert (model.head is not None) == packed
    found = both(model, tokens)[1]
    assert float((found - exact).square().mean().sqrt() / exact.std()) < TOLERANCES["narrow", torch.bfloat16][0]


def test_models_and_memories_with_ways_of_their_own_are_refused():
    def offered(model, **how):
        return Single.of(model, model.new_state(how.pop("n", 1), **how))

    model = ready(random_model(EVERYTHING))
    assert offered(model) is not None
    assert offered(model, n=2) is None
    assert offered(model, ssm_dtype=torch.bfloat16) is None
    assert offered(random_model(EVERYTHING)) is None, "not made ready"
    assert offered(ready(random_model(CONFIGS["zamba"]))) is None
    with force(norm="reference"):
        assert offered(model) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert offered(model) is None
    model.layers[0].mixer.in_proj = torch.nn.Linear(1, 1)
    assert offered(model) is None, "a part of somebody else's"
    assert offered(for_training(ready(random_model(EVERYTHING)))) is None


def test_it_serves_until_somebody_listens_or_memory_moves():
    model = ready(random_model(EVERYTHING))
    state = model.new_state(2)
    one = state.slots(0, 1)
    single = Single.of(model, one)
    assert single.serves(one) and not single.serves(state.slots(0, 1))
    with force(norm="reference"):
        assert not single.serves(one)
    handle = model.blocks[0].down.register_forward_hook(lambda *_: None)
    assert not single.serves(one) and Single.of(model, one) is None
    handle.remove()
    assert single.serves(one)
    one.reserve((1,))
    assert not single.serves(one)
