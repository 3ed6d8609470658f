"""What one of several processes does, each with its own GPU: the engine, with graphs, on a whole and on a split model."""

from datetime import timedelta

import torch
import torch.distributed as dist

from tests.parallel.worker import FREE, PARAMS, tokens
from zamba_lm.engine.runner import Runner
from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba
from zamba_lm.parallel import leave, random_parallel

SMALL = {"vocab_size": 101, "d_model": 128, "n_layers": 5, "n_heads": 4, "d_ff": 256, "d_state": 16, "init_std": 0.1}
ZAMBA2 = {"family": "zamba2", "hybrid_layers": (1, 3, 4), "n_blocks": 2, "n_ssm_heads": 4, "adapter_rank": 8, "rope_theta": 1e4}
CONFIGS = {
    "zamba2, one group": ZambaConfig(**ZAMBA2, **SMALL),
    "zamba2, two groups": ZambaConfig(**ZAMBA2, n_groups=2, attention_adapters=True, **SMALL),
    "zamba": ZambaConfig(family="zamba", hybrid_layers=(1, 3), n_ssm_heads=2, dt_rank=4, **SMALL),
}
TEXT = torch.randint(0, 101, (1, 70), generator=torch.Generator().manual_seed(1))


def main(rank: int, size: int, folder: str, direct: bool) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    meeting = f"file://{folder}/meeting"
    patience = timedelta(minutes=2)
    dist.init_process_group("nccl", init_method=meeting, rank=rank, world_size=size, timeout=patience, device_id=device)
    found = {name: case(config, device, direct) for name, config in CONFIGS.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


def case(config, device, direct):
    """Tokens and logits of the whole model and of the split one; why not, where GPUs cannot write into each other's memory."""
    whole = Zamba(config, device=device, dtype=torch.float32).init_weights(1).requires_grad_(False)
    split = random_parallel(config, 1, device=device, dtype=torch.float32)
    if direct:
        try:
            split.open_direct()
        except ZambaError as error:
            return str(error)
    logits = [model.logits(TEXT).cpu() for model in (whole, split)]
    return tokens(whole, PARAMS * 3, Runner), tokens(split, PARAMS * 3, Runner), tokens(split, (FREE,) * 3, Runner), *logits
