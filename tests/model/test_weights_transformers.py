"""Out to transformers and back: it loads what we write without a word, computes the same, and we load what it writes."""

from dataclasses import replace

import pytest
import torch
import transformers

from tests.model.tiny_weights import CONFIGS, ZAMBA, assert_same, poisoned, random_model
from tests.numerics.tolerances import assert_within
from zamba_lm.model.load import read_config
from zamba_lm.model.weights import load_weights, save_weights

CLASSES = {"zamba": transformers.ZambaForCausalLM, "zamba2": transformers.Zamba2ForCausalLM}


def theirs(folder, config, **options):
    """transformers' model of a folder, which it must load completely."""
    model, report = CLASSES[config.family].from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return without_floor(model)


def without_floor(model):
    """The published models run without transformers' floor under dt."""
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    return model.eval()


@pytest.mark.parametrize("shard", [5_000_000, 30_000])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_what_we_write_and_agrees(tmp_path, name, shard):
    config = CONFIGS[name]
    model = random_model(config).init_weights(3)
    save_weights(model, tmp_path, max_shard_bytes=shard)
    ids = torch.randint(0, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_within("parity", model.logits(ids), theirs(tmp_path, config, dtype=torch.float32)(ids).logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_we_load_what_transformers_writes(tmp_path, name):
    config = CONFIGS[name]
    model = random_model(config)
    save_weights(model, tmp_path / "ours")
    theirs(tmp_path / "ours", config).save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert read_config(tmp_path / "theirs") == config
    back = poisoned(config)
    load_weights(back, tmp_path / "theirs")
    assert_same(model, back)


@pytest.mark.parametrize("family", CLASSES)
def test_a_model_that_transformers_made_by_itself(tmp_path, family):
    """Nothing of ours in it: its own class and initialisation, and every caller's copy of the shared blocks written out."""
    config = replace(CONFIGS["two blocks" if family == "zamba2" else "zamba"], init_std=0.1)
    torch.manual_seed(0)
    model = without_floor(CLASSES[family](CLASSES[family].config_class(**config.to_hf())))
    state = {
        name: tensor.detach().clone() for name, tensor in model.state_dict().items()
    }  # clones are not shared: all are written
    assert len(state) > len(dict(model.named_parameters()))
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    back = poisoned(read_config(tmp_path))
    load_weights(back, tmp_path)
    ids = torch.arange(12)[None] % config.vocab_size
    with torch.no_grad():
        assert_within("parity", back.logits(ids), model(ids).logits)


def test_half_precision_goes_out_and_back(tmp_path):
    """transformers keeps A_log in float32, as we do."""
    model = random_model(ZAMBA)
    save_weights(model, tmp_path, dtype="bfloat16")
    theirs(tmp_path, ZAMBA).save_pretrained(tmp_path / "theirs")
    ours, back = (poisoned(read_config(folder), torch.bfloat16) for folder in (tmp_path, tmp_path / "theirs"))
    load_weights(ours, tmp_path)
    load_weights(back, tmp_path / "theirs")
    for name, parameter in ours.named_parameters():
        other = back.get_parameter(name)
        assert torch.equal(parameter.bfloat16(), other.bfloat16()), name
        assert (other.dtype == torch.float32) == name.endswith("A_log")
        assert (parameter.dtype == torch.float32) == name.endswith(("A_log", ".D", "dt_bias"))
    assert torch.equal(back.layers[0].mixer.A_log, model.layers[0].mixer.A_log)
