"""Causal multi-head attention over packed sequences, with what came before in a paged cache."""

from zamba_lm.ops.attention.cache import KVCache, check_cache
from zamba_lm.ops.attention.reference import attention_reference
from zamba_lm.ops.dispatch import Implementation, Op, forced
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.packing import Packing

__all__ = ["ATTENTION", "SELF_ATTENTION", "KVCache", "attention", "self_attention"]

ATTENTION = Op(
    "attention",
    (
        kernels("attention", "attention_triton"),
        Implementation("reference", attention_reference),
    ),
)


def _apart(qkv_T3Hd, *how):
    return attention(*qkv_T3Hd.unbind(1), *how)


SELF_ATTENTION = Op(
    "self_attention",
    (
        kernels("attention", "self_attention_triton"),
        Implementation("reference", _apart),
    ),
)


def attention(q_THd, k_THd, v_THd, scale: float, packing: Packing, cache: KVCache | None = None, angles=None):
    """softmax(scale q k^T) v, every token seeing itself and what came before in its own sequence.

    q, k, v: (T, heads, head_dim), any head_dim; views into one tensor of all three are welcome. angles: None, or the pair
    (T, head_dim / 2) of ``ops.rope`` by which q and k are rotated first. cache: None, or where sequence s so far lies, keys
    rotated already; the new keys and values are **written behind it**. Returns (T, heads, head_dim) in q's dtype. Source: arXiv
    1706.03762; the scale is the caller's (Zamba: (head_dim / 2)^-0.5).
    """
    if q_THd.shape != k_THd.shape or q_THd.shape != v_THd.shape or q_THd.shape[0] != packing.total:
        raise ValueError(f"q {tuple(q_THd.shape)}, k {tuple(k_THd.shape)} and v {tuple(v_THd.shape)} do not fit {packing}")
    if cache is not None:
        check_cache(cache, q_THd, packing)
    return ATTENTION(q_THd.device)(q_THd, k_THd, v_THd, scale, packing, cache, angles)


def self_attention(qkv_T3Hd, scale: float, packing: Packing, cache: KVCache | None = None, angles=None):
    """``attention`` of queries, keys and values that lie in one tensor (T, 3, heads, head_dim), as does its gradient."""
    if qkv_T3Hd.dim() != 4 or qkv_T3Hd.shape[1] != 3 or qkv_T3Hd.shape[0] != packing.total:
        raise ValueError(f"queries, keys and values {tuple(qkv_T3Hd.shape)} do not fit {packing}")
    if cache is not None or forced().get("attention", "triton") != "triton":
        return _apart(qkv_T3Hd, scale, packing, cache, angles)
    return SELF_ATTENTION(qkv_T3Hd.device)(qkv_T3Hd, scale, packing, None, angles)
