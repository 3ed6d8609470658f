"""Training steps on a GPU: gradients of packed documents beside the plain definitions, in every precision a run may choose."""

from dataclasses import replace

import pytest
import torch

from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.presets import preset
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.dispatch import OPS, force, record
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.xent import xent
from zamba_lm.train.captured import Captured
from zamba_lm.train.optim import build, clip
from zamba_lm.train.recipes.shapes import PEBBLE

pytestmark = pytest.mark.gpu

F32, BF16 = torch.float32, torch.bfloat16
LENGTHS = (700, 1, 2, 63, 64, 65, 1153)
SHAPES = {
    "pebble": replace(PEBBLE, n_layers=4, hybrid_layers=(1, 2, 3)),
    "2.7B": replace(preset("zamba2-2.7b"), n_layers=3, hybrid_layers=(1, 2), d_model=512, n_ssm_heads=16, n_heads=8, d_ff=1024),
    "1.2B": replace(preset("zamba2-1.2b"), n_layers=3, hybrid_layers=(1, 2), d_model=512, n_ssm_heads=16, n_heads=8, d_ff=1024),
}  # fmt: skip


def gradients(model, *, dtype=None, plain=False):
    ids = torch.randint(5, 30000, (sum(LENGTHS) + 1,), generator=torch.Generator().manual_seed(0)).cuda()
    model.zero_grad()
    choices = dict.fromkeys(OPS, "reference") if plain else {}
    with force(**choices), torch.autocast("cuda", dtype or BF16, enabled=dtype is not None):
        hidden = model.hidden(Batch(ids[:-1], Packing(LENGTHS)))
        loss = xent(hidden, model.embedding.weight, ids[1:]) / len(hidden)
    loss.backward()
    return loss.item(), {name: p.grad.double() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recomputed", [(), ("layers",)])
def test_autocast(shape, recomputed):
    model = Zamba(SHAPES[shape], device="cuda", dtype=F32).init_weights(0).recompute(*recomputed)
    loss, truth = gradients(model, plain=True)
    with record() as calls:
        near, found = gradients(model, dtype=BF16)
    assert ("mamba2_mixer", "triton") in calls and ("xent", "triton") in calls
    assert near == pytest.approx(loss, rel=1e-3)
    assert {p.grad.dtype for p in model.parameters()} == {F32}
    errors = {name: ((found[name] - value).norm() / value.norm()).item() for name, value in truth.items()}
    assert max(errors.values()) < 0.15 and sum(errors.values()) / len(errors) < 0.04, errors


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_weights(shape):
    model = Zamba(SHAPES[shape], device="cuda", dtype=F32).init_weights(0)
    loss, truth = gradients(model, plain=True)
    near, found = gradients(model.bfloat16())
    assert near == pytest.approx(loss, rel=2e-3)
    errors = {name: ((found[name] - value).norm() / value.norm()).item() for name, value in truth.items()}
    assert max(errors.values()) < 0.2 and sum(errors.values()) / len(errors) < 0.06, errors


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_steps_learn_and_a_bad_one_changes_nothing(kind):
    model = Zamba(SHAPES["pebble"], device="cuda", dtype=F32).init_weights(0)
    optimizer, losses = build(model, kind, lr=2e-3), []
    for _ in range(8):
        losses.append(gradients(model, dtype=BF16)[0])
        clip(optimizer, 1.0)
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad.fill_(torch.nan)
    optimizer.found_inf = torch.ones((), device="cuda")
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [None, BF16])
def test_a_captured_pass(dtype):
    """The eager pass's loss and gradients, for ids that came later, and after the optimizer took gradients away."""
    model = Zamba(SHAPES["pebble"], device="cuda", dtype=F32 if dtype else BF16).init_weights(0)
    step = Captured(model, (700, 324), autocast=dtype)
    optimizer = build(model, "adamw", lr=1e-3)
    for seed in range(3):
        ids = torch.randint(5, 30000, (1025,), generator=torch.Generator().manual_seed(seed)).cuda()
        targets = ids[1:].clone()
        targets[::7] = -1
        loss = step(ids[:-1], targets).item()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", BF16, enabled=dtype is not None):
            hidden = model.hidden(Batch(ids[:-1], Packing((700, 324))))
            total = xent(hidden, model.embedding.weight, targets) / (targets >= 0).sum()
        total.backward()
        assert total.item() == loss
        assert all(torch.allclose(p.grad, q, rtol=1e-3, atol=1e-6) for p, q in zip(model.parameters(), found, strict=True))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with pytest.raises(ZambaError, match="takes 1024 of each"):
        step(ids, ids)
