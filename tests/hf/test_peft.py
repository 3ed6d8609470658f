"""Adapters of PEFT: on every projection, with true gradients, merged and saved."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.hf.pairs import CLASSES, IDS, NAMES, mask, ours
from tests.numerics.tolerances import assert_within
from tests.parity.cases import CASES, FULL
from zamba_lm.model.parts import Linear


def adapted(name, **settings):
    torch.manual_seed(0)
    model = get_peft_model(ours(name), LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for one, parameter in model.named_parameters():
            if "lora_B" in one:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_adapters_on_every_projection_get_true_gradients(name, recompute):
    """Held against finite differences of the loss, in float64, one adapter after the other."""
    parameters = ["mixer.x_proj", "mixer.dt_proj"] if CASES[name].family == "zamba" else None
    model = adapted(name, target_modules="all-linear", target_parameters=parameters).double()
    if recompute:
        model.gradient_checkpointing_enable()
    projections = [one for one, module in ours(name).zamba.named_modules() if isinstance(module, Linear)]
    trained = {one: parameter for one, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * len(projections) + (4 * 5 if parameters else 0)
    assert not any("lm_head" in one for one in trained)
    model(IDS, labels=IDS, attention_mask=mask("left")).loss.backward()
    generator = torch.Generator().manual_seed(0)
    for one, parameter in trained.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        with torch.no_grad():
            direction /= direction.norm()
            for step in (1e-2, -1e-2):
                parameter.add_(direction, alpha=step)
                losses.append(model(IDS, labels=IDS, attention_mask=mask("left")).loss.double())
                parameter.sub_(direction, alpha=step)
        slope, expected = (parameter.grad * direction).sum(), (losses[0] - losses[1]) / 2e-2
        assert abs(slope - expected) < 0.02 * abs(expected) + 1e-3, f"{one}: {slope} is not {expected}"
        assert parameter.grad.abs().max() > 0, one


@pytest.mark.parametrize("name", NAMES)
def test_adapters_merged_and_saved(name, tmp_path):
    model = adapted(name, target_modules="all-linear")
    with torch.no_grad():
        expected, plain = model(IDS).logits, ours(name)(IDS).logits
        assert (expected - plain).abs().max() > 0.01
        model.save_pretrained(tmp_path / "adapter")
        again = PeftModel.from_pretrained(ours(name), tmp_path / "adapter")
        assert_within("paths", again(IDS).logits, expected)
        steps = model.generate(IDS, max_new_tokens=4, do_sample=False)
        merged = model.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        found = CLASSES[CASES[name].family].from_pretrained(tmp_path / "merged")
        assert_within(
            "paths",
            found(IDS).logits,
            expected,
        )
        assert torch.equal(found.generate(IDS, max_new_tokens=4, do_sample=False), steps)


def test_adapters_by_transformers_own_methods(tmp_path):
    model = ours(FULL)
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["in_proj", "link"]))
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*.safetensors"))
    again = ours(FULL)
    again.load_adapter(tmp_path)
    with torch.no_grad():
        assert_within("paths", again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["lm_head", "embedding"]}, {"target_modules": ["out_proj"], "modules_to_save": ["lm_head"]}]
)
def test_a_head_that_somebody_replaced(settings):
    """The loss then goes through whatever stands in the head's place."""
    model = adapted(FULL, **settings)
    out = model(IDS, labels=IDS, logits_to_keep=0)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert_within("paths", out.loss, expected)
    out.loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lm_head" in name for name in trained)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained.values())
