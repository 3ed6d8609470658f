"""The exact pass is float64 all the way, and transformers' model on our weights is the same function."""

import pytest
import torch

from tests.model.tiny import FAMILIES, model, text
from tests.parity.cases import CASES, COMBINATIONS, case_model
from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench import exact as room
from zamba_lm.eval.bench import peer
from zamba_lm.eval.bench.decoder import EngineDecoder
from zamba_lm.eval.bench.exact import exact, exact_copy

SOME = [*list(COMBINATIONS)[::5], "Zamba: attention heads of 464", "Zamba2: 3 blocks, 4 calls"]


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_float64_and_no_float32_was_on_the_way(name):
    """A change of 1e-12 of a weight arrives: in float32 it would be lost."""
    copy, ids = exact_copy(model(name)), text(70)[None]
    with exact(), torch.inference_mode():
        before = copy.logits(ids)
        copy.layers[0].norm.weight.mul_(1 + 1e-12)
        after = copy.logits(ids)
    assert before.dtype == torch.float64
    change = (after - before).abs().max().item()
    assert 1e-14 < change < 1e-9
    assert (before - model(name).logits(ids)).abs().max() < 1e-4


def test_outside_of_it_float32_is_float32_again():
    with exact():
        assert torch.ones(1).float().dtype == torch.float64 and torch.zeros(1, dtype=torch.float32).dtype == torch.float64
    assert torch.ones(1).float().dtype == torch.float32


def test_without_room_float32_serves_and_then_nothing(monkeypatch):
    small = model("zamba")
    monkeypatch.setattr(room, "free_bytes", lambda device: small.config.weight_bytes("float32") * 3 // 2)
    assert exact_copy(small).dtype == torch.float32
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    with pytest.raises(ZambaError, match="no room for the exact pass: .* GB"):
        exact_copy(small)


@pytest.mark.parametrize("name", SOME)
def test_their_model_on_our_weights_is_our_function(name):
    ours = case_model(name)
    ids = torch.randint(0, CASES[name].vocab_size, (2, 70), generator=torch.Generator().manual_seed(1))
    theirs = peer.build(ours)
    with torch.inference_mode():
        apart = (theirs(ids, use_cache=False).logits - ours.logits(ids)).abs().max()
    assert apart < 5e-5
    decoders = EngineDecoder(ours, 2, 100), peer.TheirDecoder(theirs, 2)
    for decoder in decoders:
        decoder.start(ids)
        for _ in range(5):
            decoder.step()
    assert decoders[0].tokens().tolist() == decoders[1].tokens().tolist()


@pytest.mark.parametrize("name", SOME[:1] + SOME[-1:])
def test_their_weights_are_ours_and_not_copies(name):
    ours = case_model(name)
    theirs = peer.build(ours)
    mine = {parameter.untyped_storage().data_ptr() for parameter in ours.parameters()}
    held = [p for n, p in theirs.named_parameters() if p.untyped_storage().data_ptr() not in mine]
    woven = sum(p.numel() for n, p in theirs.named_parameters() if "in_proj" in n) if ours.config.family == "zamba" else 0
    assert sum(p.numel() for p in held) == woven


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_filled_context_is_a_context(side):
    ours = case_model(SOME[0])
    decoder = EngineDecoder(ours, 2, 90) if side == "ours" else peer.TheirDecoder(peer.build(ours), 2)
    decoder.fill(80)
    for _ in range(3):
        decoder.step()
    assert decoder.tokens().shape[0] == 2 and decoder.tokens().min() >= 0
    if side == "ours":
        assert decoder.engine.pool.state.lengths[:2] == [83, 83]
    else:
        assert {layer.keys.shape[2] for layer in decoder.cache.layers if getattr(layer, "keys", None) is not None} == {83}
