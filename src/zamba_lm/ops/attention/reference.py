"""Attention through torch's scaled_dot_product_attention, one rectangle at a time."""

import torch
import torch.nn.functional as F

from zamba_lm.ops.packing import Packing


def attention_reference(q_THd, k_THd, v_THd, scale, packing: Packing, cache=None, past=None):
    outputs = []
    for run in packing.runs:
        q, k, v = (x[run.tokens].unflatten(0, (run.n, run.length)).transpose(1, 2) for x in (q_THd, k_THd, v_THd))
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=run.length > 1)
        else:
            y = _with_cache(q, k, v, scale, *(c[run.sequences] for c in cache), past[run.sequences])
        outputs.append(y.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _with_cache(q, k, v, scale, keys, values, past):
    """q, k, v: (n, heads, length, head_dim). Sequences of one age go together; others each read just what is theirs, so stale
    entries behind a sequence's end are never touched."""
    if len(set(past)) == 1:
        return _together(q, k, v, scale, keys, values, past[0])
    each = (
        _together(*(x[i : i + 1] for x in (q, k, v)), scale, keys[i : i + 1], values[i : i + 1], p) for i, p in enumerate(past)
    )
    return torch.cat(list(each))


def _together(q, k, v, scale, keys, values, past):
    new, end = q.shape[2], past + q.shape[2]
    keys[:, :, past:end] = k
    values[:, :, past:end] = v
    if past == 0:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=new > 1)
    seen = None if new == 1 else torch.ones(new, end, dtype=torch.bool, device=q.device).tril(past)
    return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=seen, scale=scale)
