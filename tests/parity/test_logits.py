"""Logits beside transformers' on the same files for every combination of features, and proof that mistakes would be seen."""

from dataclasses import replace

import pytest
import torch

from tests.model.tiny import random_ids
from tests.numerics.tolerances import TOLERANCES, assert_within
from tests.parity import theirs
from tests.parity.cases import CASES, FULL, PLAIN, case_model
from zamba_lm.model.load import load_model
from zamba_lm.model.zamba import Zamba

TOLERANCE = TOLERANCES["parity", torch.float32][0]
IDS = random_ids(2, 70)  # longer than a chunk of either scan


@torch.inference_mode()
def ours(model, ids=IDS):
    return model.logits(ids)


@pytest.mark.parametrize("name", CASES)
def test_logits_agree(name, tmp_path):
    model = case_model(name)
    model.save(tmp_path)
    logits = ours(model)
    assert 1 < logits.std() < 5
    assert_within("parity", logits, theirs.logits(theirs.read(tmp_path, CASES[name]), IDS))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 31, 32, 33, 63, 64, 65, 300])
@pytest.mark.parametrize("name", [PLAIN, FULL])
def test_logits_agree_at_any_length(name, length, tmp_path):
    model = case_model(name)
    model.save(tmp_path)
    ids = random_ids(1, length, seed=length)
    assert_within("parity", ours(model, ids), theirs.logits(theirs.read(tmp_path, CASES[name]), ids))


def test_chunks_of_their_default_size(tmp_path):
    model = case_model(FULL)
    model.save(tmp_path)
    assert_within("parity", ours(model), theirs.logits(theirs.read(tmp_path, CASES[FULL], chunk_size=256), IDS))


@pytest.mark.parametrize("name", [PLAIN, FULL])
def test_every_tensor_matters(name):
    """A tensor that is ignored, or taken for another, moves the logits far beyond the tolerance."""
    model = case_model(name)
    before = ours(model)
    for parameter_name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.copy_(parameter.flatten().roll(1).view(parameter.shape))
        moved = (ours(model) - before).abs().max()
        parameter.copy_(kept)
        assert moved > 500 * TOLERANCE, f"{parameter_name} moves the logits by {moved:.2g} only"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_theta", 0.0),
        ("rope_theta", 20_000.0),
        ("long_context", True),
        ("dt_limit", (0.0, float("inf"))),
        ("norm_eps", 1e-3),
    ],
)
def test_every_setting_matters(field, value):
    model, changed = case_model(FULL), Zamba(replace(CASES[FULL], **{field: value}))
    changed.load_state_dict(model.state_dict())
    assert (ours(changed) - ours(model)).abs().max() > 5 * TOLERANCE


def test_the_order_of_blocks_matters():
    model, swapped = case_model(FULL), case_model(FULL)
    swapped.blocks = torch.nn.ModuleList(reversed(swapped.blocks))
    assert (ours(swapped) - ours(model)).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", [PLAIN, FULL])
def test_gradients_agree(name, tmp_path):
    """Their gradients are saved as a checkpoint and read as one, so that each meets the parameter of ours it belongs to."""
    model = case_model(name)
    model.save(tmp_path)
    other = theirs.read(tmp_path, CASES[name])
    ids = IDS.clamp(min=1)  # torch's Embedding gives the padding token, 0, no gradient
    scores = torch.randn(*ids.shape, CASES[name].vocab_size, generator=torch.Generator().manual_seed(0)) / ids.numel()
    (other.requires_grad_(True)(ids, use_cache=False).logits * scores).sum().backward()
    for parameter in other.requires_grad_(False).parameters():
        parameter.copy_(parameter.grad)
    other.save_pretrained(tmp_path / "gradients")
    (model.requires_grad_(True).logits(ids) * scores).sum().backward()
    for (parameter_name, parameter), expected in zip(model.named_parameters(), load_model(tmp_path / "gradients").parameters()):
        assert expected.abs().max() > 1e-4, f"{parameter_name} has no gradient worth comparing"
        assert_within("gradient", parameter.grad, expected)
