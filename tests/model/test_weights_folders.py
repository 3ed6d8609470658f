"""load_model and convert: from a name to a model, from a folder to a folder."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file

import zamba_lm.model.load as load_module
from tests.model.tiny_weights import CONFIGS, ONE_BLOCK, STYLES, TWO_BLOCKS, ZAMBA, assert_same, random_model, saved
from zamba_lm.errors import ZambaError
from zamba_lm.model.convert import COMPANIONS, convert
from zamba_lm.model.load import load_model, read_config
from zamba_lm.model.weights import save_weights
from zamba_lm.text.tokenizer import Tokenizer

WIDE = replace(ONE_BLOCK, d_model=96, n_heads=4)  # rows long enough for int8


def test_load_model(tmp_path):
    model = saved(tmp_path, TWO_BLOCKS)
    for name in (tmp_path, str(tmp_path)):
        other = load_model(name)
        assert_same(model, other)
        assert not other.training and not any(parameter.requires_grad for parameter in other.parameters())
        assert other.device.type == ("cuda" if torch.cuda.is_available() else "cpu") and other.config == TWO_BLOCKS


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", "torch.bfloat16", torch.bfloat16, "BF16"])
def test_dtypes_by_many_names(tmp_path, dtype):
    saved(tmp_path)
    assert load_model(tmp_path, device="cpu", dtype=dtype).dtype == torch.bfloat16


def test_dtype_auto_follows_the_config_and_then_the_file(tmp_path):
    model = saved(tmp_path)
    assert load_model(tmp_path, device="cpu").dtype == torch.float32
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "dtype": "float16"}))
    assert load_model(tmp_path, device="cpu").dtype == torch.float16
    del raw["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_model(tmp_path, device="cpu").dtype == torch.float32
    save_weights(model, tmp_path, dtype="float16")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_model(tmp_path, device="cpu").dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": 3.5}, "unknown device 3.5"),
        ({"overrides": {"max_position": 8192}}, "unknown config field 'max_position' to override, did you mean 'max_positions'?"),
        ({"overrides": {"n_heads": 5}}, "48 is not a multiple of n_heads 5"),
        ({"overrides": {"d_ff": 41}}, "misshapen"),
        ({"overrides": {"hybrid_layers": 3}}, "hybrid_layers"),
        ({"overrides": {"norm_eps": "tiny"}}, "norm_eps"),
        ({"revision": "main"}, "is a local folder and has no revisions"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, options, words):
    saved(tmp_path)
    with pytest.raises(ZambaError) as caught:
        load_model(tmp_path, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_overrides_change_the_config(tmp_path):
    saved(tmp_path)
    config = load_model(tmp_path, device="cpu", overrides={"max_positions": 99, "dt_limit": [1e-3, 1.0]}).config
    assert config == replace(ONE_BLOCK, max_positions=99, dt_limit=(1e-3, 1.0))


def test_a_wrong_config_names_the_file(tmp_path):
    saved(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "hiden_size": 3}))
    with pytest.raises(ZambaError, match=f"^{tmp_path}/config.json: unknown key 'hiden_size'"):
        load_model(tmp_path)


def test_a_device_that_is_too_small(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    saved(tmp_path)
    monkeypatch.setattr(load_module, "Zamba", full)
    with pytest.raises(ZambaError, match="needs 0.0 GiB in torch.float32, more than cpu has free"):
        load_model(tmp_path, device="cpu")


def test_parameters_are_allocated_once(tmp_path, monkeypatch):
    """Every parameter keeps the memory it was built with, so nothing was ever held twice."""
    saved(tmp_path)
    seen = {}
    build = load_module.Zamba

    def watched(*args, **kwargs):
        model = build(*args, **kwargs)
        seen.update({name: parameter.data_ptr() for name, parameter in model.named_parameters()})
        return model

    monkeypatch.setattr(load_module, "Zamba", watched)
    model = load_model(tmp_path, device="cpu")
    assert seen == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


# convert


@pytest.mark.parametrize(("name", "style"), STYLES)
def test_any_style_to_any_style(tmp_path, name, style):
    model = saved(tmp_path / "from", CONFIGS[name], style=style)
    for target in [style for other, style in STYLES if other == name]:
        folder = convert(tmp_path / "from", tmp_path / target, style=target)
        assert folder == tmp_path / target
        assert_same(model, load_model(folder, device="cpu"))
        save_weights(model, tmp_path / "direct" / target, style=target)
        for file in ("config.json", "model.safetensors"):
            assert (folder / file).read_bytes() == (tmp_path / "direct" / target / file).read_bytes()


def test_another_dtype(tmp_path):
    model = saved(tmp_path / "from", ZAMBA)
    convert(tmp_path / "from", tmp_path / "to", dtype="bf16")
    tensors = load_file(tmp_path / "to" / "model.safetensors")
    kinds = {name.split(".")[-1]: tensor.dtype for name, tensor in tensors.items()}
    assert kinds.pop("A_log") == kinds.pop("D") == kinds.pop("dt_proj_bias") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16} and read_config(tmp_path / "to").dtype == "bfloat16"
    assert torch.equal(tensors["model.final_layernorm.weight"], model.norm.weight.bfloat16())


def test_same_dtype_keeps_float32_vectors_among_halves(tmp_path):
    model = random_model(ZAMBA).bfloat16()
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data = parameter.data.float()
    save_weights(model, tmp_path / "from")
    convert(tmp_path / "from", tmp_path / "to")
    assert_same(model, load_model(tmp_path / "to", device="cpu"))


def test_int8_rows_there_and_back(tmp_path):
    """The embedded model's way: 8 bits in the package, exported as a plain folder in the dtype its config says."""
    model = random_model(WIDE).bfloat16()
    save_weights(model, tmp_path / "bf16")
    convert(tmp_path / "bf16", tmp_path / "int8", dtype="int8")
    assert torch.int8 in {tensor.dtype for tensor in load_file(tmp_path / "int8" / "model.safetensors").values()}
    convert(tmp_path / "int8", tmp_path / "plain")
    assert {tensor.dtype for tensor in load_file(tmp_path / "plain" / "model.safetensors").values()} == {torch.bfloat16}
    assert_same(load_model(tmp_path / "int8", device="cpu"), load_model(tmp_path / "plain", device="cpu"))
    save_weights(model, tmp_path / "direct", int8_rows=True)
    assert (tmp_path / "direct/model.safetensors").read_bytes() == (tmp_path / "int8/model.safetensors").read_bytes()


def test_companions_come_along_and_nothing_else(tmp_path):
    saved(tmp_path / "from")
    for name in (*COMPANIONS, "optimizer.pt", "modeling_zamba2.py"):
        (tmp_path / "from" / name).write_text(name)
    convert(tmp_path / "from", tmp_path / "to")
    assert {path.name for path in (tmp_path / "to").iterdir()} == {*COMPANIONS, "config.json", "model.safetensors"}
    assert (tmp_path / "to" / "tokenizer.json").read_text() == "tokenizer.json"


def test_a_source_that_relies_on_the_packaged_tokenizer_takes_it_along(tmp_path):
    """As the embedded model does: transformers must find a tokenizer.json in what is exported."""
    config = replace(ONE_BLOCK, vocab_size=32_000, d_model=8, n_heads=2, n_ssm_heads=2, d_ff=8)
    saved(tmp_path / "from", config)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (tmp_path / "from" / "tokenizer_config.json").write_text(json.dumps(names))
    convert(tmp_path / "from", tmp_path / "to")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    ours = Tokenizer.load(tmp_path / "from")
    assert theirs("Good morning.", add_special_tokens=False)["input_ids"] == ours.encode("Good morning.", bos=False)
    assert (theirs.bos_token, theirs.eos_token_id) == ("<|im_start|>", 2)


def test_an_earlier_conversion_is_replaced_and_anything_else_is_not(tmp_path):
    model = saved(tmp_path / "from")
    saved(tmp_path / "to", TWO_BLOCKS)
    assert_same(model, load_model(convert(tmp_path / "from", tmp_path / "to"), device="cpu"))
    for name in ("other", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ZambaError, match="other is not empty and holds no checkpoint of ours to replace"):
        convert(tmp_path / "from", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    convert(tmp_path / "from", tmp_path / "empty")


def test_wrong_targets(tmp_path):
    saved(tmp_path / "from")
    (tmp_path / "file").write_text("")
    for target, words in (
        ("file", "is a file"),
        ("from", "is the checkpoint itself"),
        ("from/../from", "is the checkpoint itself"),
    ):
        with pytest.raises(ZambaError, match=words):
            convert(tmp_path / "from", tmp_path / target)
    with pytest.raises(ZambaError, match="unknown dtype 'q4'"):
        convert(tmp_path / "from", tmp_path / "to", dtype="q4")
    with pytest.raises(ZambaError, match="no 'gguf' config"):
        convert(tmp_path / "from", tmp_path / "to", style="gguf")
    assert not (tmp_path / "to").exists()


def test_a_damaged_source_leaves_the_target_as_it_was(tmp_path):
    saved(tmp_path / "from", max_shard_bytes=40_000)
    model = saved(tmp_path / "to", TWO_BLOCKS)
    before = (tmp_path / "to" / "model.safetensors").read_bytes()
    last = sorted((tmp_path / "from").glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(ZambaError, match="cut short"):
        convert(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to" / "model.safetensors").read_bytes() == before
    assert_same(model, load_model(tmp_path / "to", device="cpu"))
