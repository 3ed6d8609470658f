"""The numbers of the published runs, the mixtures, the contexts."""

from dataclasses import replace

import pytest

from zamba_lm.errors import ZambaError
from zamba_lm.hub import resolve
from zamba_lm.model.load import read_config
from zamba_lm.train.recipes import anneal, long_context, pretrain
from zamba_lm.train.recipes.base import Data
from zamba_lm.train.recipes.origin import config_of, origin
from zamba_lm.train.recipes.shapes import SHAPES, shape
from zamba_lm.train.recipes.text import weights
from zamba_lm.train.trainer.schedules import schedule

PUBLISHED = ("zamba-7b-v1", "zamba2-1.2b", "zamba2-2.7b", "zamba2-7b")


def ends(config):
    """Learning rates of the first, the highest and the step after the last."""
    steps = config.batch.steps
    rate = schedule(
        config.rate.kind, steps=steps, warmup=config.rate.warmup_steps(steps), floor=config.rate.floor, gamma=config.rate.gamma
    )
    lr, top = config.optim.lr, config.rate.warmup_steps(steps)
    return [lr * rate(0), lr * rate(top), lr * rate(steps)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_optimizers(name):
    o, run = pretrain.PRESETS[name].optim, pretrain.PRESETS[name]
    assert (o.name, o.beta1, o.beta2, o.eps, o.weight_decay, o.clip) == ("adamw", 0.9, 0.95, 1e-8, 0.1, 1.0)
    assert run.batch.row == 4096 and run.rate.kind == "cosine" and run.run.bf16


def test_zamba2_as_published():
    run = pretrain.PRESETS["zamba2-2.7b"]
    assert (run.batch.rows, run.batch.steps, run.rate.warmup_steps(run.batch.steps)) == (384, 1_700_000, 5000)
    assert ends(run)[1:] == pytest.approx([2e-4, 5e-5])
    assert weights(run.data)["dclm"] == pytest.approx(4 / 8.4) and set(run.data.weights) == set(run.data.sources)
    later = anneal.PRESETS["zamba2-2.7b"]
    assert later.batch.tokens == 100e9 and later.replay.share == 0.6 and ends(later)[1] == pytest.approx(1.5e-4)


def test_zamba1_as_published():
    run, later = pretrain.PRESETS["zamba-7b-v1"], anneal.PRESETS["zamba-7b-v1"]
    assert run.batch.tokens == 950e9 and run.batch.rows * run.batch.row == pytest.approx(2e6, rel=0.05)
    assert ends(run)[1:] == pytest.approx([1.5e-4, 7.5e-5])
    assert later.batch.tokens == 50e9 and later.rate.kind == "exponential" and later.rate.gamma == 0.25
    assert ends(later)[1:] == pytest.approx([1.1e-4, 1e-7]) and ends(later)[0] < 1e-6


def test_pebble_has_the_shape_that_ships():
    assert SHAPES["pebble"] == read_config(resolve("zamba2-pebble"))


@pytest.mark.parametrize("module", [pretrain, anneal, long_context], ids=lambda module: module.__name__)
def test_every_preset_has_a_shape_and_a_plan(module):
    for name, config in module.PRESETS.items():
        assert config_of(config) == SHAPES[name]
        text = module.plan(replace(config, run=replace(config.run, memory_gib=100_000.0)))
        assert "gradients, float32" in text and "together" in text


def test_annealing_mixes_new_with_replayed():
    data = Data(sources={"old": "a", "older": "b", "new": "c"}, weights={"new": 1.0})
    config = anneal.Config(data=data, replay=anneal.Replay(share=0.6, weights={"old": 3.0, "older": 1.0}))
    assert anneal.mixture(config).weights == pytest.approx({"old": 0.45, "older": 0.15, "new": 0.4})
    with pytest.raises(ZambaError, match=r"replay.share is 1.5"):
        anneal.mixture(replace(config, replay=anneal.Replay(share=1.5)))
    with pytest.raises(ZambaError, match=r"data.weights names 'knew' \(did you mean new\?\)"):
        anneal.mixture(replace(config, data=replace(data, weights={"knew": 1.0})))


def test_the_context_doubles_with_as_many_tokens_a_step():
    config = replace(long_context.PRESETS["zamba2-7b"], start="x")
    legs = long_context.legs(config)
    assert [leg.row for leg in legs] == [4096, 8192, 16384, 32768, 65536] and {leg.steps for leg in legs} == {100}
    assert len({leg.row * leg.rows for leg in legs}) == 1
    with pytest.raises(ZambaError, match=r"context.last is 5000, expected context.first \(4096\) doubled some times"):
        long_context.legs(replace(config, context=long_context.Context(last=5000)))


def test_rope_is_raised_where_there_is_any():
    with_rope, without = (replace(long_context.PRESETS[name], start="") for name in ("zamba2-7b", "zamba2-2.7b"))
    grown = config_of(long_context.stretched(with_rope))
    assert grown.long_context and grown.max_positions == 65536 and grown.rope_base > 8 * grown.rope_theta
    assert not config_of(long_context.stretched(without)).long_context


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pebbel", {}, r"unknown shape 'pebbel' \(did you mean pebble\?\)"),
        ("pebble", {"n_layer": 3}, r"unknown key 'shape.n_layer' \(did you mean n_layers\?\)"),
        ("pebble", {"n_layers": 3}, r"hybrid_layers .* must lie within the 3 layers"),
    ],
)
def test_shapes_that_are_not_there(name, changes, message):
    with pytest.raises(ZambaError, match=message):
        shape(name, changes)


def test_where_weights_come_from(tmp_path):
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-20").mkdir()
    (tmp_path / "run" / "checkpoint-20" / "config.json").write_text("{}")
    (tmp_path / "done" / "model").mkdir(parents=True)
    (tmp_path / "done" / "model" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert origin(str(tmp_path / "run")).name == "checkpoint-20" and origin(str(tmp_path / "done")).name == "model"
    with pytest.raises(ZambaError, match="holds neither a checkpoint of a run nor a model"):
        origin(str(tmp_path / "empty"))
    with pytest.raises(ZambaError, match="there is no folder ./runs/none"):
        origin("./runs/none")
