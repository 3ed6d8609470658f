"""Weights in every style: written, read back, the same bits."""

import json
from dataclasses import replace

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from tests.model.tiny_weights import (
    BARE,
    CONFIGS,
    ONE_BLOCK,
    STYLES,
    TWO_BLOCKS,
    ZAMBA,
    assert_same,
    edit,
    poisoned,
    random_model,
    saved,
)
from zamba_lm.errors import ZambaError
from zamba_lm.model.int8rows import expand, is_rowwise, quantize
from zamba_lm.model.load import read_config
from zamba_lm.model.names import pieces
from zamba_lm.model.weights import load_weights, save_weights


def loaded(folder, dtype=torch.float32):
    """A model filled from a folder, every parameter of it."""
    model = poisoned(read_config(folder), dtype)
    load_weights(model, folder)
    assert not any(parameter.isnan().any() for parameter in model.parameters())
    return model


@pytest.mark.parametrize(("name", "style"), STYLES)
def test_round_trip_in_every_style(tmp_path, name, style):
    model = saved(tmp_path, CONFIGS[name], style=style)
    assert read_config(tmp_path) == CONFIGS[name]
    assert_same(model, loaded(tmp_path))


@pytest.mark.parametrize(("name", "style"), STYLES)
def test_every_number_of_the_file_is_used_once(name, style):
    """The pieces of each parameter cover it exactly: no row twice, none left out."""
    config = CONFIGS[name]
    counts = {key: torch.zeros_like(value) for key, value in random_model(config).named_parameters()}
    for piece in pieces(config, style):
        piece.window(counts[piece.target]).add_(1)
    assert all((count == 1).all() for count in counts.values())


@pytest.mark.parametrize("style", ["hf", "fork", "native", "ours"])
def test_shards_with_an_index(tmp_path, style):
    model = saved(tmp_path, TWO_BLOCKS, style=style, max_shard_bytes=20_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0].startswith("model-00001-of-")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(t.nbytes for name in files for t in load_file(tmp_path / name).values())
    assert all((tmp_path / name).stat().st_size <= 30_000 for name in files)
    assert_same(model, loaded(tmp_path))


def test_the_safetensors_package_reads_the_same(tmp_path):
    model = saved(tmp_path, ONE_BLOCK)
    tensors = load_file(tmp_path / "model.safetensors")
    assert set(tensors) == {piece.names[0] for piece in pieces(ONE_BLOCK, "hf")}
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for piece in pieces(ONE_BLOCK, "hf"):
        assert torch.equal(tensors[piece.names[0]], piece.window(model.get_parameter(piece.target)).reshape(piece.shape))


def test_layouts_are_said_row_by_row():
    """The three quirks on numbers small enough to read: x and z rows taking turns, q, k and v head by head, stacked parts."""
    by_name = {
        name: piece
        for config, style in ((ZAMBA, "hf"), (ONE_BLOCK, "native"), (ONE_BLOCK, "hf"))
        for piece in pieces(config, style)
        for name in piece.names
    }
    rows = torch.arange(96)[:, None].expand(96, 24)
    woven = by_name["model.layers.0.mamba.in_proj.weight"].window(rows).reshape(96, 24)[:, 0]
    assert woven.tolist()[:6] == [0, 48, 1, 49, 2, 50]  # our x rows are 0..47, z rows 48..95
    rows = torch.arange(144)[:, None].expand(144, 48)
    qkv = by_name["decoder.blocks.0.sa.mixer.linear_qkv.weight"].window(rows).reshape(144, 48)[:, 0]
    heads = qkv.unflatten(0, (4, 3, 12))  # head, q k v, row of the head
    assert heads[1, 0].tolist() == list(range(12, 24)) and heads[1, 2].tolist() == list(range(96 + 12, 96 + 24))
    key = by_name["model.layers.0.shared_transformer.self_attn.k_proj.weight"].window(rows)[:, 0]
    assert key.tolist() == list(range(48, 96))


# tied copies


def callers(config, block):
    return [layer for call, layer in enumerate(config.hybrid_layers) if call % config.n_blocks == block]


def repeat_under_every_caller(tensors, config):
    """As transformers 4 saved fine-tuned models: each caller with its own copy of the block and of all the block's adapters."""
    for block in range(config.n_blocks):
        first, *others = callers(config, block)
        for name in [name for name in tensors if f"layers.{first}.shared_transf" in name]:
            for layer in others:
                tensors[name.replace(f"layers.{first}.", f"layers.{layer}.")] = tensors[name].clone()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_under_every_caller_are_accepted(tmp_path, name):
    config = CONFIGS[name]
    model = saved(tmp_path, config)
    before = len(load_file(tmp_path / "model.safetensors"))
    edit(tmp_path, lambda tensors: repeat_under_every_caller(tensors, config))
    assert len(load_file(tmp_path / "model.safetensors")) > before + 1
    assert_same(model, loaded(tmp_path))
    load_weights(poisoned(config, torch.bfloat16), tmp_path)  # where copies cannot be held against the rounded parameter


def test_a_block_stored_under_another_caller_only_is_accepted(tmp_path):
    model = saved(tmp_path, TWO_BLOCKS)

    def move(tensors):
        for name in [name for name in tensors if "layers.1.shared_transformer" in name]:
            tensors[name.replace("layers.1.", "layers.4.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    edit(tmp_path, move)
    assert_same(model, loaded(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["model.layers.4.shared_transformer.self_attn.q_proj.weight", "lm_head.weight"])
def test_copies_that_differ_in_one_bit_are_refused_by_name(tmp_path, name, dtype):
    saved(tmp_path, TWO_BLOCKS)

    def change(tensors):
        repeat_under_every_caller(tensors, TWO_BLOCKS)
        tensors[name].view(torch.int32)[3, 5] ^= 1

    edit(tmp_path, change)
    with pytest.raises(ZambaError, match=f"{name} in .*model.safetensors differs from"):
        load_weights(poisoned(TWO_BLOCKS, dtype), tmp_path)


def test_copies_with_the_same_nan_are_the_same(tmp_path):
    saved(tmp_path, TWO_BLOCKS)

    def change(tensors):
        tensors["model.embed_tokens.weight"][0] = float("nan")
        repeat_under_every_caller(tensors, TWO_BLOCKS)

    edit(tmp_path, change)
    load_weights(poisoned(TWO_BLOCKS), tmp_path)


@pytest.mark.parametrize("style", ["fork", "native"])
def test_adapters_that_no_call_uses_are_passed_over(tmp_path, style):
    """The authors' code gives each block an adapter for every call; the calls of the other block are never looked up."""
    model = saved(tmp_path, TWO_BLOCKS, style=style)

    def fill(tensors):
        for name in [name for name in tensors if "lora" in name]:
            block = int(name.split("blocks.")[1][0])
            other = name.replace(f"blocks.{block}.", f"blocks.{1 - block}.")
            assert other not in tensors
            tensors[other] = torch.full_like(tensors[name], 7.0)

    edit(tmp_path, fill)
    assert_same(model, loaded(tmp_path))


def test_buffers_that_follow_from_the_config_are_passed_over(tmp_path):
    model = saved(tmp_path, ONE_BLOCK)
    edit(
        tmp_path,
        lambda tensors: tensors.update({"model.layers.0.shared_transformer.self_attn.rotary_emb.inv_freq": torch.ones(6)}),
    )
    assert_same(model, loaded(tmp_path))


# dtypes


def test_the_dtype_is_the_models_and_three_small_vectors_keep_float32(tmp_path):
    model = saved(tmp_path, ZAMBA)
    half = loaded(tmp_path, torch.bfloat16)
    for name, parameter in half.named_parameters():
        small = name.endswith(("A_log", ".D", "dt_bias"))
        assert parameter.dtype == (torch.float32 if small else torch.bfloat16), name
        assert torch.equal(parameter, model.get_parameter(name).to(parameter.dtype))


def test_saving_in_half_precision_keeps_them_too(tmp_path):
    model = saved(tmp_path, ZAMBA, dtype="bf16")
    assert read_config(tmp_path).dtype == "bfloat16"
    back = loaded(tmp_path, torch.bfloat16)
    assert torch.equal(back.layers[0].mixer.A_log, model.layers[0].mixer.A_log)
    assert torch.equal(back.norm.weight, model.norm.weight.bfloat16())


def test_small_vectors_that_the_file_has_in_half_precision_stay_so(tmp_path):
    model = random_model(ZAMBA).bfloat16()
    save_weights(model, tmp_path)
    assert {parameter.dtype for parameter in loaded(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in loaded(tmp_path).parameters()} == {torch.float32}
    assert torch.equal(loaded(tmp_path).norm.weight, model.norm.weight.float())


def test_mixed_dtypes_are_saved_as_they_are_and_aligned(tmp_path):
    """float32 vectors among bf16 matrices with odd sizes: every tensor begins at a multiple of its item size."""
    config = replace(ZAMBA, vocab_size=53)
    model = random_model(config).bfloat16()
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", "D", "dt_bias")):
            parameter.data = torch.rand(parameter.shape)
    save_weights(model, tmp_path)
    assert_same(model, loaded(tmp_path, torch.bfloat16))
    header = (tmp_path / "model.safetensors").read_bytes()
    entries = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    sizes = {"F32": 4, "BF16": 2}
    assert {entry["dtype"] for name, entry in entries.items() if name != "__metadata__"} == set(sizes)
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for name, entry in entries.items() if name != "__metadata__")


def test_int8_rows(tmp_path):
    config = replace(ONE_BLOCK, d_model=96, n_heads=4, vocab_size=200)
    model = saved(tmp_path / "eight", config, int8_rows=True)
    save_weights(model, tmp_path / "full")
    tensors = load_file(tmp_path / "eight" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.int8 and tensors["model.embed_tokens.weight.row_scale"].shape == (
        200,
    )
    assert tensors["model.final_layernorm.weight"].dtype == torch.float32
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("eight", "full")]
    assert sizes[0] < 0.3 * sizes[1]
    back = loaded(tmp_path / "eight")
    for name, parameter in model.named_parameters():
        other = back.get_parameter(name)
        eight = is_rowwise(tuple(parameter.shape))
        scale = quantize(parameter)[1][:, None] if eight else torch.zeros(())
        assert ((parameter - other).abs() <= 0.5 * scale).all(), name
        assert not eight or torch.equal(other.bfloat16().float(), other), f"{name} expands to bfloat16 with rounding"


def test_scales_are_powers_of_two_and_use_the_eight_bits():
    codes, scale = quantize(torch.randn(5, 80))
    assert codes.dtype == torch.int8 and codes.abs().amax(dim=1).min() >= 64, "a bit of the eight is lost"
    mantissas, _ = torch.frexp(scale)
    assert (mantissas == 0.5).all(), "a scale is no power of two"
    assert (expand(*quantize(torch.zeros(2, 64))) == 0).all()


def test_float16_scales_are_read_too(tmp_path):
    config = replace(ONE_BLOCK, d_model=96, n_heads=4)
    saved(tmp_path, config, int8_rows=True)
    exact = loaded(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items() if name.endswith("row_scale")}))
    torch.testing.assert_close(loaded(tmp_path).embedding.weight, exact.embedding.weight, rtol=1e-3, atol=0)


# files of torch.save


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"model": t}, lambda t: {"state_dict": t, "step": 3}])
@pytest.mark.parametrize(("style", "file"), [("native", "model_direct_from_pytorch.pt"), ("hf", "pytorch_model.bin")])
def test_torch_files(tmp_path, style, file, wrap):
    model = saved(tmp_path, TWO_BLOCKS, style=style)
    torch.save(wrap(load_file(tmp_path / "model.safetensors")), tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    assert_same(model, loaded(tmp_path))
    load_weights(poisoned(TWO_BLOCKS, torch.bfloat16), tmp_path)


def test_torch_files_in_shards_and_in_the_old_format(tmp_path):
    model = saved(tmp_path, TWO_BLOCKS, max_shard_bytes=60_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    places = {}
    for number, path in enumerate(sorted(tmp_path.glob("*.safetensors"))):
        torch.save(load_file(path), path.with_suffix(".bin"), _use_new_zipfile_serialization=bool(number % 2))
        places[path.name] = path.with_suffix(".bin").name
        path.unlink()
    index["weight_map"] = {name: places[file] for name, file in index["weight_map"].items()}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_same(model, loaded(tmp_path))


def test_tensors_that_share_memory_in_a_torch_file(tmp_path):
    """torch.save keeps one storage for tied tensors, and views with any strides."""
    model = saved(tmp_path, ONE_BLOCK)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    name = "model.layers.1.mamba.out_proj.weight"
    tensors[name] = tensors[name].t().contiguous().t()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_same(model, loaded(tmp_path))


def test_a_lone_safetensors_file_of_another_name(tmp_path):
    model = saved(tmp_path, BARE)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights-step-100.safetensors")
    assert_same(model, loaded(tmp_path))


def test_a_shard_order_that_splits_a_parameter(tmp_path):
    """q in one file, k and v in another, scales apart from their rows."""
    config = replace(ONE_BLOCK, d_model=96, n_heads=4)
    saved(tmp_path, config, int8_rows=True)
    expected = loaded(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    parts = [dict(list(tensors.items())[start::3]) for start in range(3)]
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"part-{number}.safetensors")
    places = {name: f"part-{number}.safetensors" for number, part in enumerate(parts) for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(expected, loaded(tmp_path))
