"""Adapters folded into weights: what transformers and we read from the result says what model and adapter said together."""

import json

import pytest
import torch
import transformers

from tests.model.tiny import CONFIGS, random_model
from tests.train.tuning.conftest import wrapped
from zamba_lm.errors import ZambaError
from zamba_lm.hf import wrap
from zamba_lm.model.load import load_model
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.tuning.lora import Lora, add_lora
from zamba_lm.train.tuning.merge import merge

STOCK = {"zamba": transformers.ZambaForCausalLM, "zamba2": transformers.Zamba2ForCausalLM}
ROW = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


def tuned(folder, name="zamba2, plain", targets="all"):
    """(logits of a model with random adapters, their folder, the model's)."""
    base, adapter = folder / "base", folder / "adapter"
    zamba = random_model(CONFIGS[name])
    zamba.save(base)
    model = wrap(zamba, name_or_path=str(base))
    adapted = add_lora(model, Lora(rank=2, targets=targets)).eval()
    generator = torch.Generator().manual_seed(1)
    for p in adapted.parameters():
        if p.requires_grad:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    adapted.save_pretrained(adapter)
    with torch.no_grad():
        return adapted(input_ids=ROW).logits, adapter, base


@pytest.mark.parametrize("name", [name for name in CONFIGS if not CONFIGS[name].long_context])
def test_transformers_reads_what_the_adapter_said(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    logits, adapter, _ = tuned(tmp_path, name)
    out = merge(adapter, tmp_path / "out", tokenizer=Tokenizer.mistral())
    stock = STOCK[CONFIGS[name].family].from_pretrained(out, dtype=torch.float32, use_mamba_kernels=False)
    stock.eval()
    for layer in stock.model.layers:
        for module in layer.modules():
            if hasattr(module, "time_step_limit"):
                module.time_step_limit = (0.0, float("inf"))
    with torch.no_grad():
        ours = load_model(out, device="cpu", dtype=torch.float32).logits(ROW)
        theirs = stock(input_ids=ROW, use_cache=False).logits
    assert (ours - logits).abs().max() < 1e-4
    assert (theirs - logits).abs().max() < 2e-3
    assert Tokenizer.load(out).vocab_size == 32000


def test_the_models_own_adapters_and_shared_blocks_included(tmp_path):
    logits, adapter, _ = tuned(tmp_path, "zamba2, everything")
    merge(adapter, tmp_path / "out", tokenizer=Tokenizer.mistral())
    with torch.no_grad():
        assert (load_model(tmp_path / "out", device="cpu").logits(ROW) - logits).abs().max() < 1e-4
        assert (load_model(tmp_path / "base", device="cpu").logits(ROW) - logits).abs().max() > 0.05


def test_dtype_and_base_can_be_said(tmp_path):
    _, adapter, base = tuned(tmp_path)
    moved = base.rename(tmp_path / "moved")
    Tokenizer.mistral().save(moved)
    Tokenizer.mistral(instruct=True).save(adapter)
    for dtype in ("float32", "bfloat16"):
        merge(adapter, tmp_path / dtype, base=moved, out_dtype=dtype)
    assert Tokenizer.load(tmp_path / "float32").chat_template, "the tokenizer beside the adapter: it learnt the chats"
    exact, rounded = (load_model(tmp_path / dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == torch.bfloat16
    for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert torch.equal(a.to(b.dtype), b)  # rounded once


def test_what_does_not_fit_is_told_in_one_line(tmp_path):
    _, adapter, base = tuned(tmp_path)
    other = tmp_path / "other"
    wrapped("zamba").zamba.save(other)
    with pytest.raises(ZambaError, match="the adapter .* does not fit") as told:
        merge(adapter, tmp_path / "out", base=other)
    assert "\n" not in str(told.value)
    with pytest.raises(ZambaError, match="has no adapter_config.json"):
        merge(base, tmp_path / "out")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": ""}))
    with pytest.raises(ZambaError, match="does not say which model it belongs to"):
        merge(adapter, tmp_path / "out")
    config.write_text("{")
    with pytest.raises(ZambaError, match="adapter_config.json is not JSON"):
        merge(adapter, tmp_path / "out")
