"""Attention on a GPU: which kernel serves which call."""

import torch

from zamba_lm.ops.attention import attention
from zamba_lm.ops.attention.reference import attention_reference
from zamba_lm.ops.attention.triton.append import append, blank
from zamba_lm.ops.attention.triton.backward import WideAttention
from zamba_lm.ops.attention.triton.decode import decode
from zamba_lm.ops.attention.triton.flash import flash, suits_flash
from zamba_lm.ops.attention.triton.hopper import hopper_prefill, suits_hopper, suits_tall, tall_prefill, trio_takes
from zamba_lm.ops.attention.triton.hopper_training import hopper_attention, hopper_self_attention
from zamba_lm.ops.attention.triton.joined import joined, suits_joining
from zamba_lm.ops.attention.triton.packed import HEADS_OF, packed_attention
from zamba_lm.ops.attention.triton.prefill import prefill
from zamba_lm.ops.attention.triton.wide import suits_two_steps, wide_prefill
from zamba_lm.ops.rope.triton import FLOATS, rope_triton

WIDEST = 512
WIDEST_OF_TORCH = 256  # its flash kernels' limit
TOKENS_OF_A_RUN = 16384  # below this, one launch for all sequences beats torch's library, which plans every new shape for 7 ms


def attention_triton(q_THd, k_THd, v_THd, scale, packing, cache=None, angles=None):
    _check(q_THd, k_THd, v_THd, cache)
    q_THd, k_THd, v_THd = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_THd, k_THd, v_THd))
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q_THd, k_THd, v_THd)):
        return _differentiable(q_THd, k_THd, v_THd, scale, packing, cache, angles)
    if cache is not None and packing.total == len(packing):
        return decode(q_THd, k_THd, v_THd, scale, cache, angles)
    past = (0,) * len(packing) if cache is None else cache.past
    on_hopper = suits_hopper(q_THd, cache)
    torch_is_faster = not on_hopper and _suits_torch(q_THd, packing, past)
    in_two = cache is not None and not on_hopper and suits_joining(q_THd, packing, past)
    if cache is not None or angles is not None:
        keep = cache is None or torch_is_faster or in_two
        q_THd, k_THd = append(q_THd, k_THd, v_THd, packing, cache, angles, keep)
    if on_hopper:
        return hopper_prefill(q_THd, k_THd, v_THd, scale, packing, cache)
    if torch_is_faster:
        if not packing.known:
            blank(k_THd, v_THd, packing)
        return attention_reference(q_THd, k_THd, v_THd, scale, packing)
    if in_two:
        return joined(q_THd, k_THd, v_THd, scale, cache, past[0])
    if suits_tall(q_THd, k_THd, v_THd, packing, cache, past):
        return tall_prefill(q_THd, k_THd, v_THd, scale, packing, cache)
    if packing.known and suits_two_steps(q_THd, packing):
        return wide_prefill(q_THd, k_THd, v_THd, scale, packing, cache, past)
    return prefill(q_THd, k_THd, v_THd, scale, packing, cache)


def self_attention_triton(qkv_T3Hd, scale, packing, cache=None, angles=None):
    """Ours where documents of different lengths lie side by side, heads are narrow, or it is the faster one; else as
    ``attention_triton``."""
    if cache is None and torch.is_grad_enabled() and qkv_T3Hd.requires_grad and qkv_T3Hd.dtype != torch.float32:
        if trio_takes(qkv_T3Hd[:, 0]):
            return hopper_self_attention(qkv_T3Hd, scale, packing, angles)
        width = qkv_T3Hd.shape[3]
        if width in HEADS_OF and (len(packing.runs) > 1 or width == HEADS_OF[0]):
            return packed_attention(qkv_T3Hd, scale, packing, angles)
    return attention(*qkv_T3Hd.unbind(1), scale, packing, cache, angles)


def _suits_torch(q_THd, packing, past) -> bool:
    """Whether to leave the products to torch's own kernels: fresh sequences, few rectangles, heads that its fast ones take. Of a
    frame's lengths they know nothing, so there it must be one sequence, at the front."""
    if past is None or (len(packing) > 1 and not packing.known):
        return False
    few = len(packing.runs) == 1 or len(packing.runs) * TOKENS_OF_A_RUN <= packing.total
    return few and q_THd.is_cuda and not any(past) and q_THd.shape[2] <= WIDEST_OF_TORCH and q_THd.dtype != torch.float32


def _differentiable(q_THd, k_THd, v_THd, scale, packing, cache, angles):
    if cache is not None:
        raise ValueError("gradients and a cache do not go together: keys and values are written in place")
    if angles is not None:
        q_THd, k_THd = rope_triton(q_THd, *angles), rope_triton(k_THd, *angles)
    if trio_takes(q_THd):
        return hopper_attention(q_THd, k_THd, v_THd, scale, packing)
    if len(packing.runs) > 1 and suits_flash(q_THd):
        return flash(q_THd, k_THd, v_THd, scale, packing)
    if q_THd.shape[2] <= WIDEST_OF_TORCH:
        return attention_reference(q_THd, k_THd, v_THd, scale, packing)
    return WideAttention.apply(q_THd, k_THd, v_THd, scale, packing.lengths)


def _check(q_THd, k_THd, v_THd, cache) -> None:
    dtype, D = q_THd.dtype, q_THd.shape[2]
    if dtype not in FLOATS or k_THd.dtype != dtype or v_THd.dtype != dtype:
        raise TypeError(f"attention kernels take q, k, v of one of {FLOATS}, not {dtype}, {k_THd.dtype}, {v_THd.dtype}")
    if D > WIDEST:
        raise ValueError(f"attention kernels hold heads of up to {WIDEST} channels, not {D}; force(attention='reference')")
    if cache is None:
        return
    if cache.keys.dtype != dtype or cache.values.dtype != dtype:
        raise TypeError(f"the cache holds {cache.keys.dtype} and {cache.values.dtype}, queries are {dtype}")
    steps = (cache.page * D, D, 1)
    if any(pool.stride()[1:] != steps or pool.stride(0) != cache.keys.stride(0) for pool in (cache.keys, cache.values)):
        raise ValueError(
            f"keys {cache.keys.stride()} and values {cache.values.stride()} of the cache: strides must end in {steps}"
        )
    if cache.pages_SM.shape[1] > 1 and cache.page % 16:
        raise ValueError(f"pages hold {cache.page} tokens; kernels need a multiple of 16")
