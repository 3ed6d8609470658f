"""Causal multi-head attention over packed sequences, with what came before in a cache."""

from zamba_lm.ops.attention.reference import attention_reference
from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.packing import Packing

ATTENTION = Op("attention", (Implementation("reference", attention_reference),))


def attention(q_THd, k_THd, v_THd, scale: float, packing: Packing, cache=None, past=None):
    """softmax(scale q k^T) v, every token seeing itself and what came before in its own sequence.

    q, k, v: (T, heads, head_dim), any head_dim. cache: None, or a pair (keys, values) of (S, heads, capacity, head_dim) in the
    same dtype whose first ``past[s]`` entries hold sequence s so far; the new keys and values are **written behind them**. past:
    tokens already there, one integer a sequence. Returns (T, heads, head_dim) in q's dtype. Source: arXiv 1706.03762; the scale
    is the caller's (Zamba: (head_dim / 2)^-0.5).
    """
    if q_THd.shape != k_THd.shape or q_THd.shape != v_THd.shape or q_THd.shape[0] != packing.total:
        raise ValueError(f"q {tuple(q_THd.shape)}, k {tuple(k_THd.shape)} and v {tuple(v_THd.shape)} do not fit {packing}")
    if cache is not None and len(cache[0]) != len(packing):
        raise ValueError(f"the cache holds {len(cache[0])} sequences, expected {len(packing)} for {packing}")
    if cache is not None and max(n + p for n, p in zip(packing.lengths, past, strict=True)) > cache[0].shape[2]:
        raise ValueError(f"past {tuple(past)} plus new {packing.lengths} exceed the cache of {cache[0].shape[2]} tokens")
    return ATTENTION(q_THd.device)(q_THd, k_THd, v_THd, scale, packing, cache, past)
