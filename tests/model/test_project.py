"""The door to projections: what others put in their place, or listen to, is never bypassed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.model.tiny import FAMILIES, model, random_ids
from tests.numerics.tolerances import assert_within
from zamba_lm.model.merge import merge_adapters
from zamba_lm.model.pack import pack_weights
from zamba_lm.model.parts import Linear, is_plain, project

IDS = random_ids(2, 9)


class Other(nn.Module):
    """The same product by somebody else, who may add something."""

    def __init__(self, base: Linear, more: float = 0.0):
        super().__init__()
        self.base, self.more, self.calls = base, more, 0

    @property
    def weight(self):
        return self.base.weight  # as PEFT's layers have it: a reader of weights would notice nothing

    def forward(self, x):
        self.calls += 1
        assert isinstance(x, torch.Tensor) and x.shape[-1] == self.base.in_features
        return nn.functional.linear(x, self.base.weight) + self.more


def projections(one) -> list[str]:
    return [name for name, module in one.named_modules() if isinstance(module, Linear)]


def replace(one, name: str, new: nn.Module) -> nn.Module:
    owner, _, last = name.rpartition(".")
    setattr(one.get_submodule(owner), last, new)
    return new


def read(one, lengths=(4, 1, 1, 3)):
    """Logits of a text read in pieces, single steps among them."""
    state = one.new_state(2)
    return torch.cat([one.logits(part, state) for part in IDS.split(lengths, dim=1)], dim=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_projection_is_a_linear_layer_of_torch(name):
    found = projections(model(name))
    assert all(isinstance(model(name).get_submodule(one), nn.Linear) for one in found)
    matrices = [one for one, parameter in model(name).named_parameters() if one.endswith(".weight") and parameter.dim() == 2]
    assert sorted(f"{one}.weight" for one in found) == sorted(one for one in matrices if one != "embedding.weight")


@pytest.mark.parametrize("name", FAMILIES)
def test_replaced_projections_give_the_same_numbers(name):
    one = copy.deepcopy(model(name))
    new = [replace(one, path, Other(one.get_submodule(path))) for path in projections(one)]
    assert_within("paths", one.logits(IDS), model(name).logits(IDS))
    assert_within("paths", read(one), model(name).logits(IDS))
    assert all(other.calls for other in new)


@pytest.mark.parametrize("prepare", [merge_adapters, pack_weights, lambda one: one], ids=["merged", "packed", "plain"])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_replaced_projection_is_bypassed(name, prepare):
    for path in projections(model(name)):
        one = prepare(copy.deepcopy(model(name)))
        other = replace(one, path, Other(model(name).get_submodule(path), more=1.0))
        assert (one.logits(IDS) - model(name).logits(IDS)).abs().max() > 1e-3, f"{path} is bypassed"
        before = other.calls
        read(one)
        assert other.calls > before, f"{path} is bypassed in a pass with a state"


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_leaves_replaced_projections_alone(name):
    one = copy.deepcopy(model(name))
    for path in projections(one):
        replace(one, path, Other(one.get_submodule(path), more=0.1))
    before = one.logits(IDS)
    assert torch.equal(merge_adapters(one).logits(IDS), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_hooks_hear_every_projection(name):
    one, heard = copy.deepcopy(model(name)), {}
    for path in projections(one):
        one.get_submodule(path).register_forward_hook(lambda _, inputs, y, path=path: heard.update({path: (inputs[0], y)}))
    assert_within("paths", one.logits(IDS), model(name).logits(IDS))
    assert set(heard) == set(projections(one))
    for path, (x, y) in heard.items():  # the input of the product, normed
        assert_within("op", y, nn.functional.linear(x, one.get_submodule(path).weight))


def test_the_door_norms_and_adds():
    torch.manual_seed(0)
    mine, norm = Linear(6, 5), model("zamba").norm.__class__(6, 1e-5)
    nn.init.normal_(mine.weight)
    nn.init.normal_(norm.weight)
    theirs = nn.Linear(6, 5, bias=False)
    theirs.weight = mine.weight
    x, residual = torch.randn(3, 6), torch.randn(3, 5)
    halves = (x[:, :2], x[:, 2:])
    for given in (x, halves):
        expected = residual + norm(x) @ mine.weight.T
        assert_within("op", project(mine, given, norm=norm, residual=residual), expected)
        assert_within("op", project(theirs, given, norm=norm, residual=residual), expected)
    assert is_plain(mine) and not is_plain(mine, theirs)


def test_a_projection_survives_pickling():
    one = Linear(4, 3)
    nn.init.normal_(one.weight)
    again = pickle.loads(pickle.dumps(one))
    assert torch.equal(again.weight, one.weight) and again.row_scale is None and list(one.state_dict()) == ["weight"]
