"""The plain-torch path on a GPU: the same numbers as on the CPU."""

from dataclasses import replace

import pytest
import torch

from tests.gpu.shapes import ZAMBA, ZAMBA2
from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Zamba

pytestmark = pytest.mark.gpu

WIDE = replace(ZAMBA, d_model=464, n_heads=2, init_std=0.03)  # attention heads of 464


def pair(config):
    """The same model on the CPU and on the GPU."""
    cpu = Zamba(config, dtype=torch.float32).init_weights(1).requires_grad_(False)
    gpu = Zamba(config, dtype=torch.float32, device="cuda").requires_grad_(False)
    gpu.load_state_dict(cpu.state_dict())
    return cpu, gpu


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
@pytest.mark.parametrize("config", [ZAMBA2, ZAMBA, WIDE], ids=["zamba2", "zamba", "head-464"])
def test_cuda_equals_cpu(config, length):
    cpu, gpu = pair(config)
    ids = torch.randint(0, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(length))
    expected = cpu.logits(ids)
    torch.testing.assert_close(gpu.logits(ids).cpu(), expected, rtol=1e-4, atol=1e-4)
    state = gpu.new_state(2)
    cuts = [gpu.logits(part, state) for part in ids.split([1] * min(3, length) + ([length - 3] if length > 3 else []), dim=1)]
    torch.testing.assert_close(torch.cat(cuts, 1).cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [ZAMBA2, ZAMBA], ids=["zamba2", "zamba"])
def test_packed_on_cuda_equals_alone(config):
    _, gpu = pair(config)
    sequences = [list(range(1, 1 + n)) for n in (1, 70, 3, 3)]
    packed = gpu(Batch.pack(sequences, device="cuda"))
    alone = torch.cat([gpu.logits(torch.tensor([s]))[0] for s in sequences])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
