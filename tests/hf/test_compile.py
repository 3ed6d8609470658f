"""torch.compile takes the whole model in one graph."""

from dataclasses import replace

import pytest
import torch

from tests.hf.pairs import IDS, NAMES, mask
from tests.model.tiny import random_model
from tests.numerics.tolerances import assert_within
from tests.parity.cases import CASES, FULL
from zamba_lm.hf import wrap


def small(name):
    """Two layers, each with a call: compiling takes seconds a layer."""
    return wrap(random_model(replace(CASES[name], n_layers=2, hybrid_layers=(0, 1))))


@pytest.mark.parametrize("name", NAMES)
def test_compiled(name):
    model = small(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_within("paths", compiled(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits)
    with torch.no_grad():  # padding is counted on the host, so a mask breaks the graph
        found = torch.compile(model, backend="eager")(IDS, attention_mask=mask("left"), use_cache=False).logits
        assert_within("paths", found, model(IDS, attention_mask=mask("left"), use_cache=False).logits)


def test_trained_compiled():
    model, plain = small(FULL).requires_grad_(True), small(FULL).requires_grad_(True)
    torch._dynamo.reset()
    torch.compile(model, backend="aot_eager")(IDS, labels=IDS).loss.backward()
    plain(IDS, labels=IDS).loss.backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters()):
        assert one.grad is not None, name
        assert_within("gradient", one.grad, other.grad)
