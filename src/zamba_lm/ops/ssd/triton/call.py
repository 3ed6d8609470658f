"""One call's tensors and launches, forward and backward."""

import torch

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.ssd.triton.carry import carry_kernel, hand_on_kernel
from zamba_lm.ops.ssd.triton.finish import add_up_kernel, finish_kernel
from zamba_lm.ops.ssd.triton.gradient import SHARES, inputs_kernel, maps_kernel
from zamba_lm.ops.ssd.triton.plan import HEADS, plan
from zamba_lm.ops.ssd.triton.scan import scan_kernel
from zamba_lm.ops.ssd.triton.steps import steps_kernel
from zamba_lm.ops.step.reference import NO_LIMIT


class Call:
    def __init__(self, x, dt, A, B, C, D, state, bias, packing, every, limit, config, slots=None, in_place=False):
        self.x, self.B, self.C = rows(x), rows(B), rows(C)
        self.dt, self.A, self.D = dt, A.contiguous(), D.contiguous()
        self.bias, self.limit = None if bias is None else bias.contiguous(), tuple(map(float, limit))
        self.state = None if state is None else state.contiguous()
        self.slots, self.in_place = slots, in_place
        self.device, self.every = x.device, every
        self.plan = plan(x.dtype, x.device, packing, (*x.shape[1:], B.shape[2], B.shape[1]), every, config)
        self.planes = self._steps()

    def _new(self, *shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _launch(self, kernel, grid, *args, how=None, **options):
        if how is not None:
            options |= {"num_warps": how.warps, "STAGES": how.stages, "num_stages": how.stages}
            if how.registers and self.device.type == "cuda":
                options["maxnreg"] = how.registers
        launch(kernel, grid, *args, device=self.device, pdl=True, **options)

    def _steps(self):
        """Log decays in planes (PLANES, H, chunks, Q)."""
        p = self.plan
        planes = self._new(*p.planes)
        args = (self.dt, self.A, either(self.bias, self.A), planes, p.chunks, p.H, p.Z, p.sizes[-1])
        self._launch(steps_kernel, p.by_chunk, *args, *self.dt.stride(), *self.limit, **self._time_step())
        return planes

    def _time_step(self):
        """Options of the kernels that know how dt was made."""
        raw, p = self.bias is not None, self.plan
        limited = raw and self.limit != NO_LIMIT
        return {"Q": p.config.chunk, "BH": HEADS, "RAW": raw, "LIMITED": limited, "EXACT": p.exact, "num_warps": 4}

    def forward(self, before=False):
        """(y, states after, states on the way or None). ``before``: on the way means before every chunk, as ``backward`` takes
        them."""
        p, x, B, C = self.plan, self.x, self.B, self.C
        carried, start = self._carried(x, B, self.state, reverse=False)
        y = self._new(p.T, p.H, p.P, dtype=x.dtype)
        after = self.state if self.in_place else self._new(p.S, p.H, p.P, p.N)
        kept = self._new(p.n_kept, p.H, p.P, p.N) if self.every else self._before() if before else None
        places = (p.segments, p.kept, either(self.slots, p.kept))
        args = (x, B, C, self.D, self.planes, *places, either(carried, after), y, after, either(kept, after))
        strides = (*x.stride()[:2], *B.stride()[:2], *C.stride()[:2])
        options = {"START": start, "SLOTS": self.slots is not None, "KEEP": -1 if before else self.every // p.config.chunk}
        self._launch(scan_kernel, p.by_segment, *args, *p.sizes, *strides, how=p.config.scan, **options, **p.cut_heads)
        return y, after, kept

    def _carried(self, v, m, first, reverse):
        """The state before every segment (in the order of the walk), and which START that is."""
        p = self.plan
        if not p.cut:
            return first, 0 if first is None else 2
        carried, decays = self._new(p.K, p.H, p.P, p.N), self._new(p.K, p.H)
        self._carry(v, m, carried, decays, carried, carried, p.config.add, ADD=True, START=0, AFTER=False, REVERSE=reverse)
        size = p.P * p.N
        block = min(p.config.hand_on, 1 << (size - 1).bit_length())
        slots = None if reverse else self.slots
        args = (carried, decays, either(first, carried), p.sequences, either(slots, p.sequences), p.H, size)
        options = {"START": first is not None, "SLOTS": slots is not None, "REVERSE": reverse, "BLOCK": block, "num_warps": 4}
        self._launch(hand_on_kernel, (p.H, -(-size // block), p.S), *args, **options)
        return carried, 1

    def _carry(self, v, m, carried, decays, before, after, how, **options):
        p = self.plan
        args = (v, m, self.planes, p.segments, carried, decays, before, after, *p.sizes)
        strides = (*v.stride()[:2], *m.stride()[:2])
        self._launch(carry_kernel, p.by_segment, *args, *strides, how=how, **options, **p.cut_heads)

    def _states(self, v, m, first, reverse, after):
        """The state before every chunk, in the order of the walk; ``after`` receives those at its end."""
        p = self.plan
        carried, start = self._carried(v, m, first, reverse)
        before = self._before()
        options = {"ADD": False, "START": start, "AFTER": after is not None, "REVERSE": reverse}
        carried = either(carried, before)
        self._carry(v, m, carried, carried, before, either(after, before), p.config.walk, **options)
        return before

    def _before(self):
        """Room for the state before every chunk."""
        p = self.plan
        return self._new(p.Z, p.H, p.P, p.N, dtype=torch.float32 if p.exact else torch.bfloat16)

    def backward(self, dy, dafter, into=None, h=None):
        """Gradients of (x, dt, A, B, C, D, state, bias).

        ``into``: where those of x, dt, B and C go, as (T, ...) tensors whose rows may lie in something wider, those of B and C in
        the same; then only the sums of A, D and the bias over each chunk (3, Z, H) are returned. ``h``: the states before the
        chunks, where ``forward`` kept them.
        """
        p, x, B, C = self.plan, self.x, self.B, self.C
        dy = x.new_zeros(x.shape) if dy is None else rows(dy.to(x.dtype))
        dx, ddt, dB, dC = into or self._gradients()
        h = self._states(x, B, self.state, False, None) if h is None else h
        dstate = None if self.state is None else self._new(p.S, p.H, p.P, p.N)
        g = self._states(dy, C, None if dafter is None else dafter.float().contiguous(), True, dstate)
        shares, across = self._new(SHARES, *p.planes[1:]), self._new(p.H, p.Z)
        strides = (*x.stride()[:2], *dy.stride()[:2], *B.stride()[:2], *C.stride()[:2])

        args = (x, dy, B, C, self.D, self.planes, p.chunks, g, dx, shares, *p.sizes, *strides, dx.stride(0))
        self._launch(inputs_kernel, (p.H, p.Z), *args, how=p.config.inputs, **p.whole_heads)

        heads = p.config.heads
        n = -(-p.H // p.G // heads)
        parts = self._new(n, 2, p.T, p.G, p.N)
        args = (x, dy, B, C, self.planes, p.chunks, h, g, shares, across, parts, p.T, *p.sizes, *strides)
        self._launch(maps_kernel, (p.G * n, p.Z), *args, how=p.config.maps, HEADS=heads, **p.whole_heads)
        width = p.G * p.N
        columns = 1 << (width - 1).bit_length()
        block = max(1, 2048 // columns)
        args = (parts, dB, dC, n, p.T, width, dB.stride(0))
        self._launch(add_up_kernel, (-(-p.T // block), 2), *args, BT=block, BW=columns, num_warps=4)

        sums = self._new(3 if self.bias is not None else 2, p.Z, p.H)  # of A, D and the bias, a chunk
        args = (self.A, self.planes, shares, across, p.chunks, ddt, *sums[:2], sums[-1], p.H, p.Z, p.sizes[-1])
        self._launch(finish_kernel, p.by_chunk, *args, ddt.stride(0), *self.limit, **self._time_step())
        if into is not None:
            return sums
        dA, dD, *dbias = sums.sum(1)
        return dx, ddt, dA, dB, dC, dD, dstate, dbias[0] if dbias else None

    def _gradients(self):
        """Room for those of x, dt, B and C."""
        p, dtype = self.plan, self.x.dtype
        maps = (self._new(p.T, p.G, p.N, dtype=dtype) for _ in "BC")
        return self._new(p.T, p.H, p.P, dtype=dtype), self._new(p.T, p.H, dtype=self.dt.dtype), *maps


def rows(v):
    """Channels side by side, as the kernels read them; tokens and heads may have any stride."""
    return v if v.stride(-1) == 1 or v.shape[-1] == 1 else v.contiguous()


def either(v, stand_in):
    """A kernel takes a tensor where it will read none."""
    return stand_in if v is None else v
