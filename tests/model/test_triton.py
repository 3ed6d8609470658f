"""The whole model on our GPU kernels, interpreted: they fit together as their references do."""

from dataclasses import replace

import pytest
import torch

from tests.numerics.tolerances import assert_within
from zamba_lm.engine.rows import Rows
from zamba_lm.model.batch import Batch
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.state import State
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops import dispatch, gpu
from zamba_lm.ops.packing import Packing

SHAPE = {"vocab_size": 37, "d_model": 32, "n_layers": 2, "hybrid_layers": (1,), "d_state": 16, "n_heads": 2, "d_ff": 48}
ZAMBA2 = ZambaConfig(
    family="zamba2", n_ssm_heads=4, n_groups=2, adapter_rank=4, attention_adapters=True, rope_theta=1e4, init_std=0.2, **SHAPE
)
CONFIGS = {"zamba2": ZAMBA2, "zamba": ZambaConfig(family="zamba", n_ssm_heads=2, dt_rank=4, init_std=0.2, **SHAPE)}


@pytest.fixture(params=CONFIGS)
def model(request):
    return Zamba(CONFIGS[request.param], dtype=torch.float32).init_weights(7).requires_grad_(False)


@pytest.fixture
def kernels():
    """Inside the test every op that has a kernel runs it."""
    with gpu.interpreted():
        dispatch.use("triton", "cpu")
        yield
    dispatch.use("auto", "cpu")


SEQUENCES = ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11])


def expected(model):
    """Logits of every token, alone, by the references."""
    dispatch.use("reference", "cpu")
    with dispatch.record() as ran:
        logits = [model.logits(torch.tensor([ids]))[0] for ids in SEQUENCES]
    assert "triton" not in {name for _, name in ran}
    dispatch.use("triton", "cpu")
    return logits


def test_a_packed_pass(kernels, model):
    wanted = torch.cat(expected(model))
    with dispatch.record() as ran:
        found = model(Batch.pack(SEQUENCES))
    assert_within("paths", found, wanted)
    assert {name for op, name in ran if op not in ("adapter", "rope")} == {"triton"}


@torch.inference_mode()
def test_reading_and_stepping_in_pages(kernels, model):
    """Two tokens, then the rest but one, then one by one: each route of every op with a state, against whole passes."""
    wanted = expected(model)
    for ids, logits in zip(SEQUENCES, wanted, strict=True):
        state = State(model.config, 1, paged=True)
        cuts = [part for part in (ids[:2], ids[2:-1], ids[-1:] if len(ids) > 2 else []) if part]
        found = torch.cat([model(Batch.pack([part]), state) for part in cuts])
        assert_within("paths", found, logits)


@torch.inference_mode()
def test_rows_of_a_captured_step(kernels, model):
    """Rows in use continue their slots, the others disturb nobody."""
    wanted = expected(model)
    state = State(model.config, 4, paged=True)
    model(Batch.pack([SEQUENCES[0][:5], SEQUENCES[2][:1]]), state.slots(0, 2))
    rows = Rows(state, model.config.vocab_size)
    state.slots(0, 2).reserve((8, 8))
    rows.past_S[:2] = torch.tensor([5, 1], dtype=torch.int32)
    rows.occupy(2)
    before = state.ssm[:, 2].clone()
    for step in range(2):
        rows.ids_S[:2] = torch.tensor([SEQUENCES[0][5 + step], SEQUENCES[2][1 + step]])
        view = rows.view(3)
        logits = model.scores(Batch(rows.ids_S[:3], Packing((1, 1, 1)), view.open(model.embedding.weight)), view)
        for row, (seed, at) in enumerate(((0, 5 + step), (2, 1 + step))):
            assert_within("paths", logits[row], wanted[seed][at])
    assert torch.equal(state.ssm[:, 2], before)


def test_gradients(kernels):
    config = replace(ZAMBA2, n_layers=2)
    grads = []
    for backend in ("reference", "triton"):
        dispatch.use(backend, "cpu")
        model = Zamba(config, dtype=torch.float32).init_weights(7)
        model(Batch.pack(SEQUENCES)).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad is not None and grads[1][name] is not None, name
        assert_within("gradient", grads[1][name], grad)
