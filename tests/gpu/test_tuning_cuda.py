"""Tuning on a GPU: four-bit weights under adapters, and the memory that the pages promise."""

import pytest
import torch

from tests.model.tiny import random_model
from zamba_lm.hf import wrap
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.presets import PRESETS
from zamba_lm.model.zamba import Zamba

pytestmark = pytest.mark.gpu
WIDE = ZambaConfig(
    family="zamba2", vocab_size=61, d_model=64, n_layers=4, hybrid_layers=(1, 3), n_blocks=2, n_ssm_heads=4, d_state=16,
    n_heads=4, d_ff=128, adapter_rank=4, rope_theta=1e4, dtype="float32",
)  # fmt: skip


def test_adapters_over_four_bits_get_the_gradients_of_adapters_over_the_same_numbers():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from zamba_lm.train.tuning.lora import Lora, add_lora
    from zamba_lm.train.tuning.nf4 import to_nf4

    model = to_nf4(wrap(random_model(WIDE)), device="cuda", compute_dtype=torch.float32)
    plain = wrap(random_model(WIDE)).cuda()
    for path, module in model.zamba.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            dense = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.zamba.get_submodule(path).weight.data.copy_(dense)
    row, found = torch.randint(3, 61, (2, 70), device="cuda"), []
    for one in (model, plain):
        one = add_lora(one, Lora(rank=2)).train()
        generator = torch.Generator().manual_seed(1)
        factors = {n.replace(".base_layer", ""): p for n, p in one.named_parameters() if p.requires_grad}
        for p in factors.values():
            p.data = 0.1 * torch.randn(p.shape, generator=generator).cuda()
        one(input_ids=row, labels=row).loss.backward()
        found.append({n: p.grad for n, p in factors.items()})
    for n, gradient in found[0].items():
        assert (gradient - found[1][n]).norm() < 2e-2 * found[1][n].norm(), n


@pytest.mark.parametrize(("nf4", "gigabytes"), [(False, 16), (True, 8)])
def test_the_2_7b_model_is_tuned_in_little_memory(nf4, gigabytes):
    """A step on 1 x 4096 tokens with adapters on every projection and an AdamW step, layers recomputed."""
    if nf4:
        pytest.importorskip("bitsandbytes")
    from zamba_lm.train.tuning.lora import Lora, add_lora
    from zamba_lm.train.tuning.nf4 import to_nf4

    zamba = Zamba(PRESETS["zamba2-2.7b"], device="cuda", dtype=torch.bfloat16).init_weights(0).requires_grad_(False)
    model = wrap(zamba.recompute("layers"))
    model = add_lora(to_nf4(model, device="cuda", compute_dtype=torch.bfloat16) if nf4 else model, Lora())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    row = torch.randint(3, 32000, (1, 4096), device="cuda")
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=row, labels=row, lengths=(1000, 3096)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite()
    assert torch.cuda.max_memory_allocated() < gigabytes * 1e9
