"""Settings by name: typed, with the nearest name for what is not there."""

import json
from dataclasses import asdict

import pytest

from zamba_lm.errors import ZambaError
from zamba_lm.train.recipes import RECIPES, recipe
from zamba_lm.train.recipes.base import groups
from zamba_lm.train.recipes.pretrain import PRESETS, Config
from zamba_lm.train.recipes.resolve import from_dict, resolve


def settled(*pairs):
    return resolve(Config(), PRESETS, pairs)


@pytest.mark.parametrize(
    ("pair", "path", "value"),
    [
        ("batch.tokens=700e6", "batch.tokens", 700_000_000),
        ("batch.rows=1_024", "batch.rows", 1024),
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("run.bf16=no", "run.bf16", False),
        ("run.tensorboard=TRUE", "run.tensorboard", True),
        ("out=a=b", "out", "a=b"),
        ("run.peak_flops=989e12", "run.peak_flops", 989e12),
        ("run.peak_flops=none", "run.peak_flops", None),
        ("data.weights.fine-web=0.4", "data.weights", {"fine-web": 0.4}),
        ('data.weights={"a": 1, "b.c": 2}', "data.weights", {"a": 1.0, "b.c": 2.0}),
        ("data.sources.a=x/y:*-0[0-3]", "data.sources", {"a": "x/y:*-0[0-3]"}),
        ("shape.n_layers=9", "shape", {"n_layers": 9}),
        ("shape.hybrid_layers=[1, 3]", "shape", {"hybrid_layers": [1, 3]}),
    ],
)
def test_values_have_the_type_of_their_field(pair, path, value):
    found = {name: inner for name, _, inner in groups(settled(pair))}[path]
    assert found == value and type(found) is type(value)


def test_a_preset_comes_first_wherever_it_stands():
    found = settled("batch.rows=7", "preset=pebble", "data.weights.anneal=0.5")
    assert found.preset == "pebble" and found.batch.rows == 7 and found.batch.row == 2048
    assert found.data.weights == {"pretrain": 0.76, "anneal": 0.5} and found.optim.name == "muon"
    assert PRESETS["pebble"].data.weights == {"pretrain": 0.76, "anneal": 0.24}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("batch.tokns=1", r"unknown key 'batch.tokns' \(did you mean batch.tokens\?\)$"),
        ("lr=1", r"unknown key 'lr' \(did you mean optim.lr\?\)"),
        ("optim.lr.x=1", r"unknown key 'optim.lr.x' \(did you mean optim.lr\?\)"),
        ("zzzzzz=1", r"unknown key 'zzzzzz'; keys are out, preset, run.seed"),
        ("preset=peble", r"unknown preset 'peble' \(did you mean pebble\?\)"),
        ("batch.rows=0", "--set batch.rows=0: expected at least 1"),
        ("optim.lr=-1", "--set optim.lr=-1.0: expected at least 0"),
        ("optim.lr=nan", "--set optim.lr=nan: expected a finite number"),
        ("rate.warmup=inf", "--set rate.warmup=inf: expected a finite number"),
        ("optim.weight_decay=-0.1", "--set optim.weight_decay=-0.1: expected at least 0"),
        ("run.seed=-1", "--set run.seed=-1: expected at least 0"),
        ("run.seed=4294967296", "--set run.seed=4294967296: expected less than 4294967296"),
        ("batch.rows=2.5", r"--set batch.rows=2.5: expected a whole number"),
        ("batch.rows=inf", r"--set batch.rows=inf: expected a whole number"),
        ("optim.lr=fast", r"--set optim.lr=fast: expected a finite number"),
        ("run.bf16=maybe", r"--set run.bf16=maybe: expected true or false"),
        ("batch=3", r"batch is a group; set one of batch.tokens, batch.row"),
        ("data.weights=3", r"expected a JSON object, or one entry: data.weights.NAME=VALUE"),
        ("data.weights.a=x", r"--set data.weights.a=x: expected a finite number"),
        ("batch.rows", r"'batch.rows': expected KEY=VALUE"),
    ],
)
def test_mistakes_are_told(pair, message):
    with pytest.raises(ZambaError, match=message):
        settled(pair)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_field_says_something_and_every_preset_survives_json(name):
    module = recipe(name)
    assert all(text for _, text, _ in groups(module.Config()))
    for config in module.PRESETS.values():
        assert from_dict(module.Config, json.loads(json.dumps(asdict(config)))) == config


def test_a_recipe_that_is_not_there():
    with pytest.raises(ZambaError, match=r"unknown recipe 'pretrian' \(did you mean pretrain\?\)"):
        recipe("pretrian")


def test_a_recipe_of_another_version_is_refused():
    with pytest.raises(ZambaError, match="recipe.json has speed, which Config has not"):
        from_dict(Config, {"speed": 1})
