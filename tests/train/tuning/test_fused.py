"""Fused LoRA layers say what PEFT's say, wherever they run; everywhere else PEFT's run."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.train.tuning.conftest import wrapped
from zamba_lm.train.tuning import fused
from zamba_lm.train.tuning.fused import fuse
from zamba_lm.train.tuning.nf4 import to_nf4
from zamba_lm.train.tuning.targets import TARGETS

ROW = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


def adapted(name="zamba2, everything", nf4=False, dtype=torch.float32, **settings):
    model = wrapped(name)
    if nf4:
        pytest.importorskip("bitsandbytes")
        model = to_nf4(model, device="cpu", compute_dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS["all"], task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return model.to(dtype).train()


def result(model):
    model.zero_grad()
    out = model(input_ids=ROW, labels=ROW, logits_to_keep=0)
    out.loss.backward()
    return [out.logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.fixture
def steps(monkeypatch):
    """How often the fused step ran."""
    ran, apply = [], fused._LoraLinear.apply
    monkeypatch.setattr(fused._LoraLinear, "apply", lambda *args: ran.append(1) or apply(*args))
    return ran


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("name", ["zamba", "zamba2, everything"])
def test_the_same_numbers(name, nf4, steps):
    plain, ours = adapted(name, nf4), fuse(adapted(name, nf4))
    expected = result(plain)
    assert not steps
    found = result(ours)
    assert steps
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 2e-5 * max(1.0, b.abs().max().item())


def test_under_autocast(steps):
    found = []
    for model in (adapted(), fuse(adapted())):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(result(model))
    exact = result(adapted())
    assert steps and all(g.dtype == torch.float32 for g in found[1][1:])
    theirs, ours = (torch.stack([(a.float() - b).norm() / b.norm() for a, b in zip(one, exact)]).mean() for one in found)
    assert ours < 1.3 * theirs < 0.05


def test_recomputed_layers(steps):
    expected, model = result(adapted()), fuse(adapted())
    model.zamba.recompute("layers")
    for a, b in zip(result(model), expected, strict=True):
        assert (a - b).abs().max() <= 2e-5 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("case", ["dropout", "dora", "disabled", "merged", "two adapters", "dtypes differ", "base learns"])
def test_what_is_not_the_usual_case_is_pefts(case, steps):
    settings = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}}.get(case, {})
    plain, ours = adapted(**settings), fuse(adapted(**settings))
    found = []
    for model in (plain, ours):
        torch.manual_seed(0)
        if case == "two adapters":
            model.add_adapter("other", LoraConfig(r=2, target_modules=TARGETS["all"], init_lora_weights=False))
            model.base_model.set_adapter(["default", "other"])
        if case == "merged":
            model.merge_adapter()
        if case == "base learns":
            model.base_model.model.requires_grad_(True)
        if case == "dtypes differ":
            for name, p in model.named_parameters():
                p.data = p.data if "lora" in name else p.data.bfloat16()
        torch.manual_seed(0)
        if case == "disabled":
            with model.disable_adapter():
                found.append(model(input_ids=ROW).logits)
        else:
            found.append(model(input_ids=ROW).logits)
    assert torch.equal(*found) and not steps


def test_saving_loading_and_merging_stay_pefts(tmp_path):
    model = fuse(adapted())
    logits = result(model)[0]
    model.save_pretrained(tmp_path)
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(wrapped(), tmp_path)
    assert (loaded(input_ids=ROW).logits - logits).abs().max() < 1e-4
    merged = model.merge_and_unload()
    assert (merged(input_ids=ROW).logits - logits).abs().max() < 1e-4
