"""Large parameters are views of their file: equal to a copy, private to the process, and safe when the file is replaced."""

from dataclasses import replace

import torch

from tests.model.tiny_weights import ONE_BLOCK, ZAMBA, saved
from zamba_lm.model.load import load_model
from zamba_lm.model.match import LEAST_MAPPED
from zamba_lm.model.safefile import Stored

CONFIG = replace(ONE_BLOCK, vocab_size=20_000, d_model=96, n_heads=4)
LARGE = "embedding.weight"
WOVEN = replace(ZAMBA, d_model=256, n_layers=2, hybrid_layers=(1,))


def mapped(monkeypatch):
    """Collects what ``load_model`` maps from here on."""
    views, real = [], Stored.map

    def record(stored):
        views.append(stored)
        return real(stored)

    monkeypatch.setattr(Stored, "map", record)
    return views


def test_only_large_ones_are_mapped_and_every_one_is_equal(tmp_path, monkeypatch):
    model, views = saved(tmp_path, CONFIG), mapped(monkeypatch)
    loaded = load_model(tmp_path, device="cpu")
    large = [name for name, one in model.named_parameters() if one.nbytes >= LEAST_MAPPED]
    assert [view.shape for view in views] == [model.get_parameter(name).shape for name in large] and LARGE in large
    for name, one in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), one), name


def test_another_dtype_is_copied_from_where_it_lies(tmp_path, monkeypatch):
    model, views = saved(tmp_path, CONFIG), mapped(monkeypatch)
    monkeypatch.setattr(Stored, "read", _small_ones(Stored.read))
    loaded = load_model(tmp_path, device="cpu", dtype="bfloat16")
    assert views and torch.equal(loaded.get_parameter(LARGE), model.get_parameter(LARGE).bfloat16())


def test_rows_in_another_order_are_copied_from_where_they_lie(tmp_path, monkeypatch):
    """Zamba-7B-v1 keeps x and z of the input projection in turns."""
    name, model = "layers.0.mixer.in_proj.weight", saved(tmp_path, WOVEN)
    monkeypatch.setattr(Stored, "read", _small_ones(Stored.read))
    loaded = load_model(tmp_path, device="cpu")
    assert model.get_parameter(name).nbytes >= LEAST_MAPPED
    assert torch.equal(loaded.get_parameter(name), model.get_parameter(name))


def _small_ones(real):
    """``Stored.read``, which must not be asked for what is large."""

    def read(stored):
        assert stored.stop - stored.start < LEAST_MAPPED, stored
        return real(stored)

    return read


def test_changing_a_mapped_parameter_leaves_the_file_alone(tmp_path):
    saved(tmp_path, CONFIG)
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded = load_model(tmp_path, device="cpu")
    loaded.get_parameter(LARGE).fill_(3)
    assert loaded.get_parameter(LARGE).min() == 3
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_model_can_be_saved_over_the_file_it_is_a_view_of(tmp_path):
    original = saved(tmp_path, CONFIG)
    loaded = load_model(tmp_path, device="cpu")
    loaded.norm.weight.fill_(0.5)
    loaded.save(tmp_path)
    again = load_model(tmp_path, device="cpu")
    for one in (loaded, again):
        assert torch.equal(one.get_parameter(LARGE), original.get_parameter(LARGE)) and one.norm.weight.min() == 0.5
