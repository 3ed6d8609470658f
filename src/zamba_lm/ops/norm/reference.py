"""RMSNorm as its definition."""

import torch.nn.functional as F


def norm_reference(x_TD, weight_D, eps):
    if x_TD.dtype == weight_D.dtype:  # torch computes in float32 and rounds once, as below
        return F.rms_norm(x_TD, (x_TD.shape[-1],), weight_D, eps)
    return F.rms_norm(x_TD.float(), (x_TD.shape[-1],), weight_D.float(), eps).to(x_TD.dtype)


def gated_norm_reference(y_TD, z_TD, weight_D, eps, groups):
    gated = y_TD.float() * F.silu(z_TD.float())
    width = gated.shape[-1] // groups
    parts = F.rms_norm(gated.view(*gated.shape[:-1], groups, width), (width,), eps=eps)
    return (parts.view(gated.shape) * weight_D).to(z_TD.dtype)
