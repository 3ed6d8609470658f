"""Prompts read from trays, as captured passes read them, by kernels through Triton's interpreter: nobody but those meant is
touched, and they get what they get elsewhere."""

from functools import partial

import pytest
import torch

from tests.engine.tiny import model, oracle, prompt
from zamba_lm.engine import tray as trays
from zamba_lm.engine.engine import Engine
from zamba_lm.engine.request import SamplingParams
from zamba_lm.engine.runner import FRAMED, Runner, reads_frames
from zamba_lm.engine.tray import Tray, tray_for
from zamba_lm.model.batch import Batch
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here; tests/gpu captures such passes for real")
CHUNK = 24
OTHERS = dict.fromkeys(
    ("linear", "gated_linear", "norm", "gated_norm", "mamba1_step", "mamba2_step", "greedy", "sample", "rope"), "reference"
)  # these know of no lengths, and the interpreter is slow


@pytest.fixture
def small(monkeypatch):
    """Interpreted kernels, and trays of sizes that suit them."""
    monkeypatch.setattr(trays, "SEATS", (1, 3))
    monkeypatch.setattr(trays, "TOKENS", (8, CHUNK))
    monkeypatch.setattr("zamba_lm.ops.scan.triton.configs.forward", lambda *_: {"SPLIT": 1, "TILES": 1, "HOLD": 1, "FAR": 0})
    with interpreted(), force(**OTHERS, **dict.fromkeys(FRAMED, "triton")):
        yield


def engine(**how):
    return Engine(model(), runner=partial(Runner, capture=False), prefill_tokens=CHUNK, **how)


def alone(ids, max_tokens):
    """What the slow loop answers, by the references."""
    with force(**dict.fromkeys(FRAMED, "reference")):
        return oracle("zamba2", tuple(ids), max_tokens)


def test_sizes_hold_what_they_are_for():
    for sequences in (1, 2, 16):
        for tokens in range(sequences, trays.TOKENS[-1] + 1, 7):
            seats, room, _ = tray_for(sequences, tokens, True)
            assert seats >= sequences and room >= tokens and room - tokens <= max(63, tokens)
    assert tray_for(17, 100, True) is None and tray_for(1, trays.TOKENS[-1] + 1, True) is None
    assert tray_for(1, 1000, False) == (1, 1024, False) and tray_for(1, 1025, False) is None


def test_kernels_that_need_lengths_on_the_host_go_pass_by_pass():
    assert not reads_frames(model("zamba2")), "reference implementations need them"
    with interpreted(), force(**dict.fromkeys(FRAMED, "triton")):
        assert reads_frames(model("zamba2")) and reads_frames(model("zamba"))


@pytest.mark.parametrize("length", [1, 8, 9, 2 * CHUNK + 1])
def test_a_prompt_of_any_length(small, length):
    running = engine()
    ids = tuple(prompt(length))
    request = running.add(ids, SamplingParams(max_tokens=1))
    used = []
    while running.busy:
        events = running.step()
        used += running.runner._trays
        assert all(event.request_id == request for event in events)
    again = running.add(ids, SamplingParams(max_tokens=1))  # into the slot that the first one left behind, from the same trays
    assert running.run()[again].ids == alone(ids, 1)
    assert used and all(seats == 1 for seats, *_ in used)


def test_prompts_together_and_one_by_one(small):
    """Several in a pass, more than a tray has seats for, some cut by the end of a pass, beside one that decodes already."""
    running = engine(max_batch=6)
    lengths = [5, 9, 30, 2, 1, 1]
    request, used, tokens = {}, set(), {}
    for at, n in enumerate(lengths):
        request[running.add(prompt(n, n), SamplingParams(max_tokens=2))] = n
        if at == 0:
            running.step()
            used |= set(running.runner._trays)
    while running.busy:
        for event in running.step():
            tokens.setdefault(event.request_id, []).append(event.token)
        used |= set(running.runner._trays)
    assert {seats for seats, *_ in used} == {1, 3}
    assert all(tuple(tokens[id]) == alone(prompt(n, n), 2) for id, n in request.items())


@pytest.mark.parametrize("family", ["zamba2", "zamba"])
@torch.inference_mode()
def test_padding_touches_nobody(small, family):
    """Every byte of every other slot and page stays what it was, and a dirty tray reads as a fresh one does."""
    on = model(family)
    state = on.new_state(6)
    state.slots(0, 6).reserve((40,) * 6)
    for tensor in (state.windows, state.ssm, *state.kv.stores):
        tensor.normal_()
    state.ages[:] = [0, 5, 11, 0, 3, 20]
    slots, prompts = (2, 3), [prompt(5, 1), prompt(4, 2)]
    expected = state.clone()
    logits = on.scores(Batch.pack(prompts), expected.slots(2, 4), last_only=True)
    before = state.clone()
    tray = Tray(state, 3, CHUNK)
    tray.fill([prompt(9, 3), prompt(12, 4), prompt(1, 5)], 3)  # what an earlier pass left in the tray
    tray.frame.cu_seqlens()
    tray.fill(prompts, slots[0])
    found = on.scores(tray.batch, tray, last_only=True)
    torch.testing.assert_close(found[:2], logits, rtol=1e-4, atol=1e-4)
    for name in ("windows", "ssm"):
        now, was, due = (getattr(one, name) for one in (state, before, expected))
        torch.testing.assert_close(now[:, 2:4], due[:, 2:4], rtol=1e-4, atol=1e-4)
        assert torch.equal(now[:, [0, 1, 4, 5]], was[:, [0, 1, 4, 5]])
    for now, was, due in zip(state.kv.stores, before.kv.stores, expected.kv.stores, strict=True):
        for slot, new in zip(slots, prompts):
            age = before.ages[slot]
            new = slice(age, age + len(new))
            torch.testing.assert_close(now[:, slot, :, new], due[:, slot, :, new], rtol=1e-4, atol=1e-4)
            assert torch.equal(now[:, slot, :, new.stop :], was[:, slot, :, new.stop :])
            assert torch.equal(now[:, slot, :, :age], was[:, slot, :, :age])
        assert torch.equal(now[:, [0, 1, 4, 5]], was[:, [0, 1, 4, 5]])
