"""Weights that do not fit or are damaged: one line that names everything wrong, never another exception, never silence."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.model.tiny_weights import ONE_BLOCK, TWO_BLOCKS, ZAMBA, edit, poisoned, saved
from zamba_lm.errors import ZambaError
from zamba_lm.model.checkpoint import open_checkpoint, read_json
from zamba_lm.model.safefile import read_header
from zamba_lm.model.weights import load_weights


def refusal(folder, config=ONE_BLOCK):
    """The one line that loading says."""
    with pytest.raises(ZambaError) as caught:
        load_weights(poisoned(config), folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_wrong_is_said_at_once(tmp_path):
    saved(tmp_path)

    def spoil(tensors):
        del tensors["model.final_layernorm.weight"], tensors["model.layers.1.mamba.D"]
        tensors["model.layers.9.mamba.D"] = torch.ones(4)
        tensors["model.layers.3.mamba.A_log"] = torch.ones(5)
        tensors["model.layers.2.linear.weight"] = torch.ones(24, 24, dtype=torch.int64)
        tensors["model.layers.3.mamba.conv1d.weight"] = torch.ones(60, 4)

    edit(tmp_path, spoil)
    line = refusal(tmp_path)
    assert str(tmp_path) in line
    assert "2 missing: model.layers.1.mamba.D, model.final_layernorm.weight" in line
    assert "1 unexpected: model.layers.9.mamba.D" in line
    assert "2 misshapen: " in line and "model.layers.3.mamba.A_log is (5,), expected (4,)" in line
    assert "model.layers.3.mamba.conv1d.weight is (60, 4), expected (60, 1, 4)" in line
    assert "1 mistyped: model.layers.2.linear.weight is int64, expected floats" in line


def test_long_lists_are_cut_with_a_count(tmp_path):
    saved(tmp_path)
    line = refusal(tmp_path, replace(ONE_BLOCK, n_layers=30))
    assert (
        "234 missing: model.layers.4.input_layernorm.weight, " in line and "and 214 more" in line and len(line) < 1500
    )  # 26 layers of 9 tensors


def test_the_wrong_family_and_other_models(tmp_path):
    saved(tmp_path)
    assert "missing" in refusal(tmp_path, ZAMBA)
    edit(tmp_path, lambda tensors: (tensors.clear(), tensors.update({"transformer.wte.weight": torch.ones(3)})))
    assert "no tensor has a known name, the first is 'transformer.wte.weight'" in refusal(tmp_path)


def test_a_fork_checkpoint_for_a_zamba_config(tmp_path):
    saved(tmp_path, style="fork")
    assert "there is no 'fork' style for zamba weights" in refusal(tmp_path, ZAMBA)


def test_int8_without_scales_or_with_wrong_ones(tmp_path):
    config = replace(ONE_BLOCK, d_model=96, n_heads=4)
    saved(tmp_path, config, int8_rows=True)

    def spoil(tensors):
        del tensors["model.embed_tokens.weight.row_scale"]
        tensors["model.layers.1.mamba.out_proj.weight.row_scale"] = torch.ones(3)
        tensors["model.layers.3.mamba.out_proj.weight"] = torch.ones(96, 192)

    edit(tmp_path, spoil)
    line = refusal(tmp_path, config)
    assert "model.embed_tokens.weight is int8 without its row_scale" in line
    assert "model.layers.1.mamba.out_proj.weight has a row_scale that does not fit it" in line
    assert "model.layers.3.mamba.out_proj.weight has a row_scale that does not fit it" in line


# missing and unreadable files


def test_a_folder_without_weights(tmp_path):
    assert refusal(tmp_path).startswith(f"no weights in {tmp_path}: expected model.safetensors")


def test_several_files_and_no_index(tmp_path):
    saved(tmp_path, max_shard_bytes=20_000)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "no index that says which belong together" in refusal(tmp_path)


def test_missing_shards_are_named(tmp_path):
    saved(tmp_path, max_shard_bytes=20_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    for path in files[1:3]:
        path.unlink()
    line = refusal(tmp_path)
    assert f"lacks 2 of {len(files)} shards" in line and files[1].name in line and files[2].name in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a JSON list"),
        ("{}", "expected a weight_map"),
        ('{"weight_map": {"a": 3}}', "expected a weight_map"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "expected plain file names"),
        ('{"weight_map": {"a": ""}}', "lacks 1 of 1"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_a_damaged_index(tmp_path, text, words):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert words in refusal(tmp_path)


def test_json_that_is_not_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ZambaError, match="config.json is not JSON"):
        read_json(tmp_path / "config.json")
    with pytest.raises(ZambaError, match="cannot read .*: No such file"):
        read_json(tmp_path / "nothing.json")


def test_the_same_tensor_in_two_shards(tmp_path):
    saved(tmp_path, max_shard_bytes=20_000)
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    assert "twice, in model-00001-of-" in refusal(tmp_path)


# damaged safetensors


def test_cut_short_names_both_sizes(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    assert f"{path} is cut short: {len(data)} bytes expected, {len(data) - 1000} found" in refusal(tmp_path)
    path.write_bytes(data + b"x")
    assert f"is longer than its header says: {len(data)} bytes expected, {len(data) + 1} found" in refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 1000, 5000])
def test_cut_anywhere(tmp_path, length):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert str(path) in refusal(tmp_path)


def header_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xff", "not JSON"),
        ({"a": 3}, "header entry of 'a'"),
        ({"a": {}}, "header entry of 'a'"),
        ({"a": entry(dtype="F31")}, "header entry of 'a'"),
        ({"a": entry(dtype=["F32"])}, "header entry of 'a'"),
        ({"a": entry(shape=3)}, "header entry of 'a'"),
        ({"a": entry(shape="ab")}, "header entry of 'a'"),
        ({"a": entry(shape=(-2,))}, "header entry of 'a'"),
        ({"a": entry(shape=(2.0,))}, "header entry of 'a'"),
        ({"a": entry(shape=(3,))}, "header entry of 'a'"),
        ({"a": entry(offsets=(0,))}, "header entry of 'a'"),
        ({"a": entry(offsets=(8, 0))}, "header entry of 'a'"),
        ({"a": entry(shape=(2**40, 2**40), offsets=(0, 2**82))}, "header entry of 'a'"),
        ({"a": entry(offsets=(4, 12))}, "'a' begins at byte"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "'b' begins at byte"),
        ({"a": entry(shape=(4,), offsets=(0, 16))}, "cut short"),
        ({}, "longer than its header says"),
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, header, words):
    header_file(tmp_path / "model.safetensors", header, b"\0" * 8)
    assert words in refusal(tmp_path)


def test_empty_tensors_and_metadata_are_fine(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "a": entry(shape=(0, 3), offsets=(0, 0)), "b": entry(shape=(), offsets=(0, 4))}
    header_file(tmp_path / "model.safetensors", header, b"\0\0\x80?")
    found = read_header(tmp_path / "model.safetensors")
    assert found["a"].read().shape == (0, 3) and found["b"].read().item() == 1.0


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    found = read_header(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ZambaError, match="became shorter while it was read: 138896 bytes expected, 9000 found"):
        list(found.values())[-1].read()
    path.unlink()
    with pytest.raises(ZambaError, match="cannot read .*: No such file"):
        list(found.values())[-1].read()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    saved(folder, TWO_BLOCKS)
    return (folder / "model.safetensors").read_bytes()


fuzz = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(st.data())
def test_flipped_bytes_in_the_header_load_or_are_refused(tmp_path, sound, data):
    """A changed name, shape, type or range is found; a harmless change (of the metadata, say) loads."""
    length = 8 + int.from_bytes(sound[:8], "little")
    spoilt = bytearray(sound)
    for place in data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=4)):
        spoilt[place] = data.draw(st.integers(0, 255))
    (tmp_path / "model.safetensors").write_bytes(spoilt)
    try:
        load_weights(poisoned(TWO_BLOCKS), tmp_path)
    except ZambaError as error:
        assert str(tmp_path) in str(error)


@fuzz
@given(st.integers(0, 10**6))
def test_any_cut_is_refused(tmp_path, sound, cut):
    (tmp_path / "model.safetensors").write_bytes(sound[: cut % len(sound)])
    with pytest.raises(ZambaError):
        load_weights(poisoned(TWO_BLOCKS), tmp_path)


# damaged and dangerous torch files


class Danger:
    """Unpickling this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_code_in_a_torch_file_never_runs(tmp_path):
    torch.save({"a": torch.ones(2), "b": Danger(str(tmp_path / "ran"))}, tmp_path / "pytorch_model.bin")
    assert "could run code and are not loaded" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Danger(str(tmp_path / "ran")), protocol=2))
    refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {1: torch.ones(3)}])
def test_a_torch_file_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert "expected tensors by name" in refusal(tmp_path)


@pytest.fixture(scope="module")
def sound_pickle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pickle")
    saved(folder, TWO_BLOCKS)
    torch.save(load_file(folder / "model.safetensors"), folder / "x.bin")
    return (folder / "x.bin").read_bytes()


@settings(fuzz, max_examples=60)
@given(st.data())
def test_damaged_torch_files_load_or_are_refused(tmp_path, sound_pickle, data):
    spoilt = bytearray(sound_pickle)
    if data.draw(st.booleans()):
        spoilt = spoilt[: data.draw(st.integers(0, len(spoilt)))]
    for place in data.draw(st.lists(st.integers(0, 4000) | st.integers(-4000, -1), min_size=1, max_size=5)):
        if -len(spoilt) <= place < len(spoilt):
            spoilt[place] = data.draw(st.integers(0, 255))
    (tmp_path / "pytorch_model.bin").write_bytes(spoilt)
    try:
        open_checkpoint(tmp_path)
        load_weights(poisoned(TWO_BLOCKS), tmp_path)
    except ZambaError:
        pass
