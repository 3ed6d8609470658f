"""The optimizers: torch's numbers, groups by what a parameter is, steps that are refused or scaled on the way, exact resume."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.train.tiny import TINY
from zamba_lm.errors import ZambaError
from zamba_lm.model.zamba import Zamba
from zamba_lm.train.optim import build, clip, orthogonal, split


@pytest.fixture
def model():
    return Zamba(TINY, dtype=torch.float32).init_weights(0)


def fill(model, seed, size=1.0):
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g) * size


def torchs(model, kind, lr):
    matrices, _, embedding, rest = split(model)
    adam = {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-8}
    groups = [{"params": embedding, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    if kind == "adamw":
        return [torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, *groups], **adam)]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, **adam)]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_torchs_numbers(model, kind):
    other = copy.deepcopy(model)
    ours, theirs = build(model, kind, lr=0.01), torchs(other, kind, 0.01)
    for step in range(4):
        fill(model, step), fill(other, step)
        norm = clip(ours, 1.0)
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0))
        for optimizer in (ours, *theirs):
            optimizer.step()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=5e-4 if kind == "muon" else 1e-6)  # Muon's products are bfloat16


def test_groups(model):
    matrices, stacks, embedding, rest = (set(map(id, group)) for group in split(model))
    names = {name: id(p) for name, p in model.named_parameters()}
    assert embedding == {names["embedding.weight"]}
    for name in (
        "layers.0.mixer.in_proj.weight",
        "blocks.1.qkv.weight",
        "layers.1.adapters.gate_up.A.weight",
        "layers.2.link.weight",
    ):
        assert names[name] in matrices
    for name in (
        "norm.weight",
        "layers.0.mixer.conv_weight",
        "layers.0.mixer.A_log",
        "layers.0.mixer.D",
        "layers.0.mixer.dt_bias",
    ):
        assert names[name] in rest
    assert not stacks and len(matrices) + len(embedding) + len(rest) == len(names)


def test_what_decays_in_the_first_family():
    model = Zamba(replace(TINY, family="zamba", dt_rank=4, adapter_rank=0, rope_theta=0.0))
    optimizer = build(model, "adamw", lr=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        is_matrix = "proj" in name or name.split(".")[-2] in ("qkv", "o", "gate_up", "down", "link")
        assert decay[id(p)] == pytest.approx(0.01 if "embedding" in name else 0.1 if is_matrix else 0.0), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_bad_step_changes_nothing(model, kind):
    optimizer = build(model, kind, lr=0.01)
    fill(model, 0)
    optimizer.step()
    before, state = [p.clone() for p in model.parameters()], copy.deepcopy(optimizer.state_dict()["state"])
    fill(model, 1, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for index, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[index][name]) for name, value in entries.items())
    optimizer.found_inf = torch.zeros(())
    fill(model, 2)
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_it_goes_on_from_its_state_as_if_it_had_not_stopped(model, kind):
    optimizer = build(model, kind, lr=0.01)
    for step in range(2):
        fill(model, step)
        optimizer.step()
    other = copy.deepcopy(model)
    resumed = build(other, kind, lr=0.5)  # the rate comes from the state
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (other, resumed)):
        fill(m, 7)
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_clip_is_of_one_step(model):
    optimizer = build(model, "adamw", lr=0.01)
    fill(model, 0, 100.0)
    clip(optimizer, 1.0)
    assert optimizer.grad_scale > 1
    optimizer.step()
    assert optimizer.grad_scale is None


@pytest.mark.parametrize("shape", [(3, 20, 8), (2, 8, 20)])
def test_orthogonal(shape):
    singular = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))).float())
    assert singular.min() > 0.4 and singular.max() < 1.4


def test_nonsense_is_named(model):
    with pytest.raises(ZambaError, match="unknown optimizer 'sgd', expected one of adamw, muon"):
        build(model, "sgd", lr=0.1)
    with pytest.raises(ZambaError, match="nothing to train"):
        build(model.requires_grad_(False), lr=0.1)
