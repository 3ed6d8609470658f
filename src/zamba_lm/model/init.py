"""The published initialisation (facts: arXiv 2411.15242 and the released configs)."""

import math
from typing import TYPE_CHECKING

import torch

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.mamba1 import Mamba1
from zamba_lm.model.mamba2 import Mamba2
from zamba_lm.model.parts import Norm

if TYPE_CHECKING:
    from zamba_lm.model.zamba import Zamba


@torch.no_grad()
def init_weights(model: "Zamba", seed: int) -> None:
    """Normal(0, init_std) for every matrix, ones for norms and D, log(1..n) for A, time steps log-uniform in [dt_min, dt_max]."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for parameter in model.parameters():
        parameter.normal_(0, model.config.init_std, generator=generator)
    for module in model.modules():
        if isinstance(module, Norm):
            module.weight.fill_(1)
        if isinstance(module, Mamba1 | Mamba2):
            init_mixer(module, model.config, generator)


def init_mixer(m: Mamba1 | Mamba2, c: ZambaConfig, generator) -> None:
    """What is not normal in a mixer."""
    m.D.fill_(1)
    m.conv_bias.zero_()
    m.dt_bias.copy_(_dt_bias(m.dt_bias.shape, c, generator))
    m.A_log.copy_(torch.arange(1, m.A_log.shape[-1] + 1, device=m.A_log.device).log().expand_as(m.A_log))
    if isinstance(m, Mamba2):
        m.norm_weight.fill_(1)
    else:
        bound = c.dt_rank**-0.5
        m.dt_proj.uniform_(-bound, bound, generator=generator)


def _dt_bias(shape, c: ZambaConfig, generator) -> torch.Tensor:
    """Inverse softplus of time steps drawn log-uniformly."""
    u = torch.rand(shape, generator=generator, device=generator.device)
    dt = torch.exp(math.log(c.dt_min) + u * (math.log(c.dt_max) - math.log(c.dt_min))).clamp(min=c.dt_floor)
    return dt + torch.log(-torch.expm1(-dt))
