"""The plain loop: it learns, it resumes, it stops on nonsense; bits per byte are what they say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba
from zamba_lm.train.bits import bits_per_byte
from zamba_lm.train.corpus import TARGET
from zamba_lm.train.loop import Plan, Stage, optimizers, train
from zamba_lm.train.pebble import PEBBLE, PLAN
from zamba_lm.train.stream import Mixture, split_targets

TINY = ZambaConfig(
    family="zamba2",
    vocab_size=50,
    d_model=32,
    n_layers=3,
    hybrid_layers=(1, 2),
    n_blocks=2,
    n_ssm_heads=2,
    d_state=8,
    n_heads=2,
    d_ff=32,
    adapter_rank=4,
    rope_theta=1e4,
)
TINY_PLAN = Plan(
    stages=(Stage("a", 0.5, {"x": 1.0}), Stage("b", 0.5, {"x": 0.5, "y": 0.5})),
    tokens=30 * 4 * 16,
    row=16,
    batch=4,
    compile=False,
    log_every=1,
    save_every=10,
    patterns={"x": "x*.npy", "y": "y*.npy"},
)


@pytest.fixture
def corpus(tmp_path):
    pattern = np.tile(np.arange(3, 13, dtype=np.uint16), 200) | TARGET  # perfectly predictable
    np.save(tmp_path / "x0.npy", pattern)
    np.save(tmp_path / "y0.npy", pattern[::-1].copy())
    return tmp_path


def run(corpus, out, plan=TINY_PLAN, on_log=None):
    model = Zamba(TINY, dtype=torch.float32).init_weights(0)
    log = train(model, Mixture(corpus, plan.patterns, plan.row, "cpu", 0), plan, out=out, on_log=on_log)
    return model, log


def test_it_learns_and_follows_its_stages(corpus, tmp_path):
    _, log = run(corpus, tmp_path / "out", replace(TINY_PLAN, tokens=60 * 64, matrix_lr=0.02, other_lr=0.02))
    assert [e["stage"] for e in log] == ["a"] * 30 + ["b"] * 30
    assert log[0]["loss"] == pytest.approx(math.log(50), rel=0.05) and log[29]["loss"] < 1.5


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(corpus, tmp_path):
    whole, log = run(corpus, tmp_path / "whole")

    def kill(entry):
        if entry["step"] == 23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "cut", on_log=kill)
    resumed, rest = run(corpus, tmp_path / "cut")
    assert rest[0]["step"] == 20  # the last checkpoint
    assert [e["loss"] for e in rest] == [e["loss"] for e in log[20:]]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_stops_the_run(corpus, tmp_path):
    model = Zamba(TINY, dtype=torch.float32).init_weights(0)
    model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ZambaError, match="nan at step 0"):
        train(model, Mixture(corpus, TINY_PLAN.patterns, 16, "cpu", 0), TINY_PLAN, out=tmp_path / "out")


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(ZambaError, match=r"x\*\.npy"):
        Mixture(tmp_path, {"x": "x*.npy"}, 16, "cpu")


def test_the_schedule_warms_up_holds_and_falls_to_nothing():
    plan = replace(TINY_PLAN, warmup=0.1, decay_from=0.5)
    assert [plan.rate(p) for p in (0.0, 0.05, 0.1, 0.5)] == pytest.approx([0, 0.5, 1, 1])
    assert plan.rate(0.75) == pytest.approx(0.5) and plan.rate(1.0) == 0


def test_every_parameter_is_trained_once():
    model = Zamba(TINY, dtype=torch.float32).init_weights(0)
    groups = [p for o in optimizers(model, TINY_PLAN) for g in o.param_groups for p in g["params"]]
    assert len(groups) == len({id(p) for p in groups}) == len(list(model.parameters()))
    decayed = {id(p) for o in optimizers(model, TINY_PLAN) for g in o.param_groups if g["weight_decay"] for p in g["params"]}
    for name, p in model.named_parameters():
        if name.endswith(("A_log", "D", "dt_bias", "norm.weight", "norm_weight")):
            assert id(p) not in decayed, name


def test_mixtures_repeat_by_seed_and_see_every_window_once(corpus):
    draw = lambda seed: Mixture(corpus, TINY_PLAN.patterns, 16, "cpu", seed).batch({"x": 1.0}, 20)[0]  # noqa: E731
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    source = Mixture(corpus, {"x": "x*.npy"}, 16, "cpu", 0).sources["x"]
    windows = list(source.queue)
    assert len(set(windows)) == len(windows) == (2000 - 1 - windows_offset(windows)) // 16


def windows_offset(windows):
    return min(start for _, start in windows)


def test_files_that_arrive_later_join(corpus):
    mixture = Mixture(corpus, {"x": "x*.npy"}, 16, "cpu", 0)
    before = len(mixture.sources["x"].queue)
    np.save(corpus / "x1.npy", np.zeros(1000, dtype=np.uint16))
    mixture.look()
    assert len(mixture.sources["x"].queue) > before and set(mixture.sources["x"].files) == {"x0.npy", "x1.npy"}


def test_target_bits_become_targets():
    rows = torch.from_numpy(np.array([[1, 5 | TARGET, 6, 7 | TARGET]], dtype=np.uint16).view(np.int16))
    ids, targets = split_targets(rows)
    assert ids.tolist() == [[1, 5, 6]] and targets.tolist() == [[5, -1, 7]]


@pytest.mark.parametrize("length", [17, 40, 65])
def test_bits_per_byte_counts_every_target_once(length):
    model = Zamba(TINY, dtype=torch.float32).init_weights(0).requires_grad_(False)
    entries = (np.arange(length, dtype=np.uint16) % 40) | TARGET
    ids = torch.from_numpy((entries & ~TARGET).astype(np.int64))
    nats = 0.0
    for start in range(0, length - 1, 16):
        window = ids[start : start + 17]
        logp = torch.log_softmax(model.logits(window[None, :-1])[0], -1)
        nats -= float(logp.gather(1, window[1:, None]).sum())
    assert bits_per_byte(model, entries, 100, row=16, batch=2) == pytest.approx(nats / math.log(2) / 100, rel=1e-5)


def test_the_recipe_of_the_embedded_model_is_whole():
    assert sum(s.share for s in PLAN.stages) == pytest.approx(1)
    assert {name for s in PLAN.stages for name in s.mix} == set(PLAN.patterns)
    assert sum(p.numel() for p in Zamba(PEBBLE, device="meta").parameters()) == 29_938_700
