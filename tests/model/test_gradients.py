"""Training passes: gradients reach every parameter, are slopes, and know nothing of packing."""

import pytest
import torch

from tests.model.tiny import CONFIGS, VOCAB, random_model, text
from tests.numerics.tolerances import assert_within
from zamba_lm.model.batch import Batch


def gradients(zamba, *batches):
    """Gradients of a weighted sum of the logits of every batch."""
    zamba.zero_grad()
    for batch in batches:
        logits = zamba(batch)
        weights = torch.stack([torch.randn(VOCAB, generator=torch.Generator().manual_seed(int(i))) for i in batch.ids_T])
        (logits * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in zamba.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_every_parameter(name):
    zamba = random_model(CONFIGS[name]).requires_grad_(True)
    for parameter_name, gradient in gradients(zamba, Batch.pack([text(70).tolist()])).items():
        assert gradient.isfinite().all(), parameter_name
        assert gradient.abs().max() > 1e-3, parameter_name


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_packed_sequences_are_the_sums_of_their_own(name):
    zamba = random_model(CONFIGS[name]).requires_grad_(True)
    sequences = [text(n).tolist() for n in (5, 1, 66)]
    packed, single = gradients(zamba, Batch.pack(sequences)), gradients(zamba, *(Batch.pack([one]) for one in sequences))
    for parameter_name in packed:
        scale = single[parameter_name].abs().max().clamp(min=1)
        assert_within("gradient", packed[parameter_name] / scale, single[parameter_name] / scale)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_slopes(name):
    """A small step, in every element the way its gradient points, changes the sum as the gradient says."""
    zamba = random_model(CONFIGS[name]).requires_grad_(True)
    ids, step = text(70)[None], 1e-3
    weights = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2))

    def value():
        return (zamba.logits(ids).double() * weights).mean()

    value().backward()
    for parameter_name, parameter in zamba.named_parameters():
        direction = parameter.grad.sign()  # no cancelling
        slope = (parameter.grad.double() * direction).sum()
        with torch.no_grad():
            parameter += step * direction
            above = value()
            parameter -= 2 * step * direction
            below = value()
            parameter += step * direction
        assert abs((above - below) / (2 * step) - slope) < 0.02 * slope + 1e-4, parameter_name


def test_a_state_needs_no_gradients_to_be_switched_off():
    """A fresh model's parameters want gradients; continuing a state with it must work all the same."""
    zamba = random_model(CONFIGS["zamba2, everything"]).requires_grad_(True)
    state, ids = zamba.new_state(1), text(5)[None]
    parts = [zamba.logits(ids[:, at : at + 1], state) for at in range(5)]
    assert_within("paths", torch.cat(parts, 1).detach(), zamba.logits(ids).detach())
    assert not state.ssm.requires_grad and not state.windows.requires_grad
