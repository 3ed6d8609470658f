"""The memory of a run, planned beside allocated."""

import pytest
import torch

from tests.model.tiny import CONFIGS
from zamba_lm.errors import ZambaError
from zamba_lm.model.presets import PRESETS
from zamba_lm.model.zamba import Zamba
from zamba_lm.train import optim
from zamba_lm.train.recipes.shapes import SHAPES
from zamba_lm.train.trainer import plan

# One H200, float32 weights, bfloat16 products: the most that a step held beside weights and gradients, GiB (2026-11-22).
MEASURED = {
    ("zamba2-2.7b", 4096): {"none": 23.08, "mixers": 10.78, "blocks": 17.97, "layers": 6.20},
    ("pebble", 65536): {"none": 14.76, "mixers": 8.70, "blocks": 8.99, "layers": 3.01},
}


@pytest.mark.parametrize(("name", "tokens"), list(MEASURED))
@pytest.mark.parametrize("recompute", plan.RECOMPUTE)
def test_activations_are_planned_as_measured(name, tokens, recompute):
    found = plan.memory(SHAPES[name], row=tokens, micro=1, recompute=recompute, optimizer="adamw", bf16=True)
    planned = (found.activations + found.products) / 2**30
    assert planned == pytest.approx(MEASURED[name, tokens][recompute], rel=0.2)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_fixed_memory_is_what_training_allocates(name):
    config = CONFIGS[name]
    zamba = Zamba(config, dtype=torch.float32).init_weights(0)
    found = plan.memory(config, row=8, micro=1, recompute="none", optimizer="muon", bf16=True)
    parameters = list(zamba.parameters())
    assert found.weights == found.gradients == sum(p.nbytes for p in parameters) == 2 * found.products
    optimizer = optim.build(zamba, "muon", lr=1e-3)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moments = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if v.dim())
    assert found.moments == moments


def test_activations_grow_with_rows_and_shrink_with_recomputation():
    config = PRESETS["zamba2-2.7b"]
    sizes = {kind: plan.activations(config, 8192, kind, 2) for kind in plan.RECOMPUTE}
    assert sizes["none"] > sizes["blocks"] > sizes["mixers"] > sizes["layers"]
    assert plan.activations(config, 16384, "none", 2) > 1.9 * sizes["none"]


def test_the_plan_takes_what_fits_and_says_what_would():
    settings = {"row": 4096, "most": 8, "recompute": "none", "optimizer": "adamw", "bf16": True}
    config = PRESETS["zamba2-2.7b"]
    assert plan.choose(config, micro=0, device_bytes=141 * 2**30, **settings) == 4
    with pytest.raises(ZambaError, match=r"4 rows of 4096 tokens with recompute=none need .* what fits: --set batch.micro="):
        plan.choose(config, micro=4, device_bytes=80 * 2**30, **settings)
    with pytest.raises(ZambaError, match="nothing fits: take a smaller shape"):
        plan.choose(config, micro=0, device_bytes=24 * 2**30, **settings)
    with pytest.raises(ZambaError, match="8 rows of a step do not divide by it"):
        plan.choose(config, micro=3, device_bytes=141 * 2**30, **settings)
    with pytest.raises(ZambaError, match="batch.recompute is 'all', expected one of none, mixers, blocks, layers"):
        plan.choose(config, micro=1, device_bytes=2**40, **settings | {"recompute": "all"})
