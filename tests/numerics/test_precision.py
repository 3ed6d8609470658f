"""The table of precisions in docs/numerics.md, held against a bfloat16 model of each family."""

import pytest
import torch

from tests.numerics.tolerances import TOLERANCES
from zamba_lm.model.batch import Batch
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.rope import angles

SMALL = {"vocab_size": 61, "d_model": 24, "n_layers": 3, "hybrid_layers": (1, 2), "d_state": 5, "n_heads": 2, "d_ff": 20}
CONFIGS = {
    "zamba": ZambaConfig(family="zamba", n_ssm_heads=2, dt_rank=3, **SMALL),
    "zamba2": ZambaConfig(family="zamba2", n_ssm_heads=4, n_blocks=2, adapter_rank=2, rope_theta=1e4, **SMALL),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    return Zamba(CONFIGS[request.param], dtype=torch.bfloat16).init_weights(seed=1)


@torch.inference_mode()
def test_state_keeps_its_declared_dtypes_through_passes_and_steps(model):
    state = model.new_state(2)
    for lengths in ((7, 3), (1, 1), (2, 1)):
        logits = model(Batch.pack([range(n) for n in lengths]), state)
        assert logits.dtype == torch.float32
        assert state.ssm.dtype == torch.float32
        assert {state.windows.dtype, *(kv.dtype for kv in state.kv.stores)} == {torch.bfloat16}


@torch.inference_mode()
def test_ssm_state_has_bits_that_bfloat16_would_lose(model):
    state = model.new_state(1)
    for token in range(4):
        model.logits(torch.tensor([[token]]), state)
    kept = state.ssm != state.ssm.bfloat16().float()
    assert kept.float().mean() > 0.5


def test_angles_are_exact_far_into_a_text():
    cos, sin = angles(torch.tensor([16383]), 8, 1e4)
    expected = 16383 / 1e4 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    assert cos.dtype == sin.dtype == torch.float32
    assert (cos[0].double() - expected.cos()).abs().max() < 2e-3  # float32 keeps 16383 radians to 1e-3
    assert (sin[0].double() - expected.sin()).abs().max() < 2e-3


@torch.inference_mode()
def test_narrow_states_are_an_option_that_stays_near(model):
    """bfloat16 SSM states: half the bytes, every route, logits near those with float32 states."""
    wide, narrow = model.new_state(2), model.new_state(2, ssm_dtype=torch.bfloat16)
    assert narrow.ssm.dtype == torch.bfloat16 and narrow.ssm.nbytes * 2 == wide.ssm.nbytes
    for lengths in ((7, 3), (1, 1), (2, 1)):
        batch = Batch.pack([range(n) for n in lengths])
        exact, near = model(batch, wide), model(batch, narrow)
        assert narrow.ssm.dtype == torch.bfloat16
        assert ((near - exact).square().mean() / exact.var()).sqrt() < TOLERANCES["narrow", torch.bfloat16][0]
