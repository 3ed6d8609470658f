"""RoPE as its definition: pairs (i, i + half) turned by an angle that grows with position."""

import torch


def angles_reference(positions_T, head_dim, base):
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_T.device) / head_dim
    angle_TF = positions_T.float()[:, None] * (1.0 / base**exponent)
    return angle_TF.cos(), angle_TF.sin()


def rope_reference(x_THd, cos_TF, sin_TF):
    first, second = x_THd.float().chunk(2, dim=-1)
    cos, sin = cos_TF[:, None], sin_TF[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_THd.dtype)
