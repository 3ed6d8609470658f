"""What the kernels of attention are asked to do, in the interpreter and on a GPU alike."""

import torch

from tests.numerics.tolerances import assert_within
from tests.ops.caches import content, paged, written
from zamba_lm.ops.attention import KVCache, attention
from zamba_lm.ops.attention.reference import attention_reference
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.rope import angles

WIDTHS = (8, 20, 160, 464)  # one power of two, an odd one, two powers of two, one that two programs share
DECODES = {  # past of each sequence, which then gets one token more
    "first tokens": (0, 0),
    "one old": (300,),
    "around a page": (15, 16, 17, 63, 64, 65),
}
CHUNKS = {  # new tokens and past of each sequence
    "one": ((1,), (0,)),
    "odd": ((63, 64, 65), (0, 0, 0)),
    "mixed": ((1, 66, 2, 5), (16, 0, 70, 31)),
    "continued": ((40,), (100,)),
}


def make(total, width, *, heads=2, dtype=torch.float32, device=None):
    """q, k, v as a model passes them: views into one tensor of all three."""
    generator = torch.Generator().manual_seed(total + width)
    qkv = torch.randn(total, 3 * heads * width, generator=generator).to(device, dtype)
    return qkv.unflatten(-1, (3 * heads, width)).split(heads, dim=1)


def check(new, past, width, *, page=16, heads=2, dtype=torch.float32, turn=False, host=True, device=None):
    """The kernel beside the reference in float64, outputs and caches; nothing but the new entries is written."""
    packing, scale = Packing(new), (width / 2) ** -0.5
    q, k, v = make(packing.total, width, heads=heads, dtype=dtype, device=device)
    positions = [torch.arange(p, p + n, device=device) for p, n in zip(past, new, strict=True)]
    turns = angles(torch.cat(positions), width, 1e4) if turn else None
    cache = wide = None
    totals = [p + n for p, n in zip(past, new, strict=True)]
    if page:
        before = [make(p + 1, width, heads=heads, dtype=dtype, device=device)[1:] for p in past]
        before = [(keys[:-1], values[:-1]) for keys, values in before]
        cache = paged(before, totals, page=page, heads=heads, width=width, dtype=dtype, device=device, host=host)
        wide = KVCache(cache.keys.double(), cache.values.double(), cache.pages_SM, cache.past_S, tuple(past))
    with force(attention="triton"):
        y = attention(q, k, v, scale, packing, cache, turns)
    expected = attention_reference(q.double(), k.double(), v.double(), scale, packing, wide, turns)
    assert y.dtype == dtype
    assert_within("op", y, expected)
    if page:
        assert written(cache) == sum(totals)
        for s, total in enumerate(totals):
            for kept, given in zip(content(cache, s, total), content(wide, s, total), strict=True):
                assert_within("op", kept, given)
