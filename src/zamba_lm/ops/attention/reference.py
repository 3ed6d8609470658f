"""Attention through torch's scaled_dot_product_attention, one rectangle at a time."""

import torch
import torch.nn.functional as F

from zamba_lm.ops.attention.cache import KVCache
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.rope.reference import rope_reference


def attention_reference(q_THd, k_THd, v_THd, scale, packing: Packing, cache: KVCache | None = None, angles=None):
    if angles is not None:
        q_THd, k_THd = rope_reference(torch.cat([q_THd, k_THd], dim=1), *angles).chunk(2, dim=1)
    if cache is not None:
        tables = cache.pages_SM.tolist()
        past = cache.past_S.tolist() if cache.past is None else cache.past
    outputs = []
    for run in packing.runs:
        cut = (x if len(packing.runs) == 1 else x[run.tokens] for x in (q_THd, k_THd, v_THd))  # going back, a slice is a copy
        q, k, v = (x.unflatten(0, (run.n, run.length)).transpose(1, 2) for x in cut)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=run.length > 1)
        else:
            y = _with_cache(q, k, v, scale, cache, tables[run.sequences], past[run.sequences])
        outputs.append(y.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _with_cache(q, k, v, scale, cache, tables, past):
    """q, k, v: (n, heads, length, head_dim). Sequences of one age in neighbouring rows go together; others each read just what
    is theirs, so stale entries behind a sequence's end are never touched."""
    first = tables[0][0]
    if len(tables[0]) == 1 and len(set(past)) == 1 and all(table[0] == first + i for i, table in enumerate(tables)):
        rows = slice(first, first + len(tables))
        return _together(q, k, v, scale, cache.keys[rows], cache.values[rows], past[0])
    one = _in_pages if len(tables[0]) > 1 else _in_row
    each = (one(*(x[i : i + 1] for x in (q, k, v)), scale, cache, tables[i], p) for i, p in enumerate(past))
    return torch.cat(list(each))


def _in_row(q, k, v, scale, cache, table, past):
    """One sequence whose whole room is one page."""
    row = slice(table[0], table[0] + 1)
    return _together(q, k, v, scale, cache.keys[row], cache.values[row], past)


def _in_pages(q, k, v, scale, cache, table, past):
    """One sequence in several pages: written page by page, then gathered."""
    end, page = past + q.shape[2], cache.page
    for pool, new in ((cache.keys, k), (cache.values, v)):
        for m in range(past // page, (end - 1) // page + 1):
            start, stop = max(past, m * page), min(end, (m + 1) * page)
            pool[table[m], :, start - m * page : stop - m * page] = new[0, :, start - past : stop - past]
    used = table[: (end - 1) // page + 1]
    keys, values = (torch.cat([pool[m] for m in used], dim=1)[None, :, :end] for pool in (cache.keys, cache.values))
    return _seen(q, keys, values, scale)


def _together(q, k, v, scale, keys, values, past):
    new, end = q.shape[2], past + q.shape[2]
    keys[:, :, past:end] = k
    values[:, :, past:end] = v
    if past == 0:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=new > 1)
    return _seen(q, keys[:, :, :end], values[:, :, :end], scale)


def _seen(q, keys, values, scale):
    """New tokens last: each sees the keys up to its own."""
    new, end = q.shape[2], keys.shape[2]
    seen = None if new == 1 else torch.ones(new, end, dtype=torch.bool, device=q.device).tril(end - new)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, scale=scale)
