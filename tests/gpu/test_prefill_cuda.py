"""Prompts read from trays on a GPU: the plain pass's logits and states, also captured, whatever lies behind the last sequence."""

from dataclasses import replace

import pytest
import torch

from tests.gpu.shapes import ZAMBA, ZAMBA2
from tests.numerics.tolerances import assert_within
from zamba_lm.engine.tray import Tray
from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.attention import KVCache, attention
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.packing import Packing

pytestmark = pytest.mark.gpu

CONFIG, OLDER = replace(ZAMBA2, attention_adapters=False), replace(ZAMBA, n_layers=4)


def model(config, dtype):
    return Zamba(config, dtype=dtype, device="cuda").init_weights(1).requires_grad_(False)


def ids(n, seed):
    return torch.randint(1, 101, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("config", [CONFIG, OLDER], ids=["zamba2", "zamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("seats", "lengths"), [(1, (1,)), (1, (500,)), (1, (640,)), (16, (3, 300, 1, 64)), (16, (640,))])
@torch.inference_mode()
def test_a_tray_reads_as_a_plain_pass_does(monkeypatch, config, dtype, seats, lengths):
    on, first = model(config, dtype), 2
    prompts = [ids(n, n) for n in lengths]
    states = [on.new_state(first + len(lengths) + 1) for _ in range(2)]
    for state in states:
        state.slots(first, first + len(lengths)).reserve(lengths)
    expected = on.scores(Batch.pack(prompts, device="cuda"), states[0].slots(first, first + len(lengths)), last_only=True)
    state = states[1]
    tray = Tray(state, seats, 640, fresh=True)
    tray.fill([ids(5, 9)], first)
    on.scores(tray.batch, tray, last_only=True)  # compiles, and leaves a used tray and used slots behind

    def anew():
        state.ssm.zero_()
        state.windows.zero_()
        tray.fill(prompts, first)

    anew()
    empty = torch.empty

    def full_of_nan(*args, **kwargs):
        v = empty(*args, **kwargs)
        return v.fill_(torch.nan) if v.is_floating_point() else v

    with monkeypatch.context() as poisoned:
        poisoned.setattr(torch, "empty", full_of_nan)
        found = on.scores(tray.batch, tray, last_only=True)[: len(lengths)].clone()
    assert_within("paths", found, expected)
    used = slice(first, first + len(lengths))
    assert_within("paths", state.ssm[:, used], states[0].ssm[:, used], dtype=dtype)
    others = [*range(first), len(state) - 1]
    assert not state.ssm[:, others].any() and not state.windows[:, others].any()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = on.scores(tray.batch, tray, last_only=True)
    anew()
    graph.replay()
    assert torch.equal(again[: len(lengths)], found)


@pytest.mark.parametrize("width", [160, 224])
@pytest.mark.parametrize(("new", "past"), [(300, 256), (257, 1000)])
def test_new_tokens_behind_a_long_past(width, new, past):
    generator = torch.Generator(device="cuda").manual_seed(new)
    qkv = torch.randn(new, 3, 2, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    pool = torch.randn(2, 8, 2, 256, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    pages = torch.tensor([[5, 0, 7, 2, 3, 1]], dtype=torch.int32, device="cuda")
    answers = []
    for way in ("triton", "reference"):
        keys, values = pool.clone()
        cache = KVCache(keys, values, pages, torch.tensor([past], dtype=torch.int32, device="cuda"), (past,))
        with force(attention=way):
            answers.append(attention(*qkv.unbind(1), (width / 2) ** -0.5, Packing([new]), cache))
    assert_within("op", *answers)
