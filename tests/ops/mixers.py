"""One token through a mixer of either family: random arguments, and the definition in float64."""

import torch

from tests.ops import naive
from zamba_lm.ops.step import mamba1_step, mamba2_step

NO_LIMIT = (0.0, float("inf"))


class Mamba2Token:
    """Arguments of mamba2_step: window and state of their slots, and what stays the same from token to token."""

    def __init__(self, slots, *, heads=4, width=6, groups=1, n=8, taps=4, dtype=torch.float32, dt_limit=NO_LIMIT, device="cpu"):
        channels = heads * width + 2 * groups * n
        g = torch.Generator().manual_seed(slots + groups)
        self.h = torch.randn(slots, heads * width + channels + heads, generator=g).to(dtype)
        self.window = torch.randn(slots, taps - 1, channels, generator=g).to(dtype)
        conv = _conv(channels, taps, g)
        for v in conv:
            v[heads * width :] /= n**0.25  # B and C such that their products over n are of the order of 1
        self.constants = (*conv, _raw(heads, g=g), -8 * torch.rand(heads, generator=g), _raw(heads, g=g))
        self.state = torch.randn(slots, heads, width, n, generator=g) / 2
        self.groups, self.dt_limit = groups, dt_limit
        _move(self, device)

    def step(self, h, window, state, slots=None, *, early=False):
        return mamba2_step(h, window, state, self.constants, self.groups, self.dt_limit, slots, early)

    def definition(self):
        """(y, window, state) after the token, in float64."""
        conv_weight, conv_bias, dt_bias, A, D = self.constants
        (S, H, P, N), G = self.state.shape, self.groups
        z, xBC, dt = self.h.double().split((H * P, len(conv_bias), H), dim=1)
        xBC, window = _convolved(xBC, conv_weight, conv_bias, self.window)
        x, B, C = xBC.split((H * P, G * N, G * N), dim=1)
        x, B, C = x.unflatten(1, (H, P)), B.unflatten(1, (G, N)), C.unflatten(1, (G, N))
        dt = _time_step(dt + dt_bias.double(), self.dt_limit)
        y, state = naive.each(lambda x, dt, B, C, h: naive.ssd(x, dt, A, B, C, D, h), (1,) * S, (x, dt, B, C), self.state)
        return y.flatten(1) * z * torch.sigmoid(z), window, state

    def inputs(self):
        """What a step must leave as it was."""
        return self.h, *self.constants


class Mamba1Token:
    """Arguments of mamba1_step."""

    def __init__(self, slots, *, heads=2, width=24, rank=5, n=8, taps=4, dtype=torch.float32, dt_limit=NO_LIMIT, device="cpu"):
        g = torch.Generator().manual_seed(slots + heads)
        channels = heads * width
        self.h = (torch.randn(slots, 2 * channels, generator=g) / 2).to(dtype)
        self.window = torch.randn(slots, taps - 1, channels, generator=g).to(dtype)
        A = -8 * torch.rand(heads, width, n, generator=g)
        self.constants = (*_conv(channels, taps, g), _raw(heads, width, g=g) - 2, A, _raw(heads, width, g=g))
        self.x_proj = (torch.randn(heads, rank + 2 * n, width, generator=g) / 2 / width**0.5).to(dtype)
        self.dt_proj = (torch.randn(heads, width, rank, generator=g) / 2 / rank**0.5).to(dtype)
        self.state = torch.randn(slots, heads, width, n, generator=g) / 2
        self.dt_limit = dt_limit
        _move(self, device)

    def step(self, h, window, state, slots=None, *, early=False):
        return mamba1_step(h, window, state, self.constants, self.x_proj, self.dt_proj, self.dt_limit, slots, early)

    def definition(self):
        conv_weight, conv_bias, dt_bias, A, D = self.constants
        (S, H, P, N), R = self.state.shape, self.dt_proj.shape[-1]
        x, z = self.h.double().chunk(2, dim=1)
        x, window = _convolved(x, conv_weight, conv_bias, self.window)
        x = x.unflatten(1, (H, P))
        dt, B, C = torch.einsum("shp,hrp->shr", x, self.x_proj.double()).split((R, N, N), dim=-1)
        dt = torch.einsum("shr,hpr->shp", dt, self.dt_proj.double()) + dt_bias.double()
        dt = _time_step(dt, self.dt_limit)
        y, state = naive.each(lambda x, dt, B, C, h: naive.scan(x, dt, A, B, C, D, h), (1,) * S, (x, dt, B, C), self.state)
        return y.flatten(1) * z * torch.sigmoid(z), window, state

    def inputs(self):
        return self.h, self.x_proj, self.dt_proj, *self.constants


def _conv(channels, taps, g):
    return torch.randn(channels, taps, generator=g) / 2, torch.randn(channels, generator=g)


def _raw(*shape, g):
    return torch.randn(shape, generator=g)


def _convolved(x, weight, bias, window):
    return naive.each(lambda x, w: naive.conv(x, weight, bias, w), (1,) * len(x), (x,), window)


def _time_step(raw, limit):
    return torch.logaddexp(raw, torch.zeros_like(raw)).clamp(*limit)


def _move(token, device):
    for name, value in vars(token).items():
        if isinstance(value, torch.Tensor):
            setattr(token, name, value.to(device))
        elif name == "constants":
            token.constants = tuple(v.to(device) for v in value)
