"""How the sampling kernels are launched. Nothing here depends on what the tensors hold, so a graph can capture it."""

import torch
import triton

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.sample.settings import WORDS
from zamba_lm.ops.sample.triton.argmax import argmax_kernel, best_part_kernel
from zamba_lm.ops.sample.triton.draw import sample_kernel

LINE = 32  # tokens whose weights are added up first, in few shuffles
LANE = 32  # tokens that one thread holds: as many as fit its registers when 32 warps share a multiprocessor
MOST_WARPS = 32
PROGRAMS = 512  # among which ``greedy`` divides its rows, each into at least 8 parts and at most 32
SMALLEST_PART = 512


def greedy_triton(logits_SV, ids_S):
    S, V = logits_SV.shape
    argmax(logits_SV, ids_S, min(max(PROGRAMS // max(S, 1), 8), 32, triton.cdiv(V, SMALLEST_PART)))


def argmax(logits_SV, ids_S, parts):
    """Each row in ``parts`` programs, and one more to find the best of them."""
    S, V = logits_SV.shape
    device, block = logits_SV.device, triton.next_power_of_2(triton.cdiv(V, parts))
    values = places = logits_SV  # never touched where a row is one part
    if parts > 1:
        values = torch.empty((S, parts), dtype=torch.float32, device=device)
        places = torch.empty((S, parts), dtype=torch.int32, device=device)
    launch(
        argmax_kernel,
        (S, parts),
        logits_SV,
        logits_SV.stride(0),
        ids_S,
        values,
        places,
        V,
        PARTS=parts,
        BLOCK=block,
        num_warps=warps(block),
        device=device,
        pdl=True,
    )
    if parts > 1:
        width = triton.next_power_of_2(parts)
        launch(best_part_kernel, (S,), values, places, ids_S, PARTS=parts, WIDTH=width, num_warps=1, device=device, pdl=True)


def sample_triton(logits_SV, settings, ids_S, seen_nV, slots_S):
    S, V = logits_SV.shape
    words, line = settings.words_n5, min(LINE, triton.next_power_of_2(V))
    lines = triton.next_power_of_2(triton.cdiv(V, line))
    launch(
        sample_kernel,
        (S,),
        logits_SV,
        logits_SV.stride(0),
        words,
        words.view(torch.float32),
        words.view(torch.int32),
        words if slots_S is None else slots_S,
        words if seen_nV is None else seen_nV.view(torch.uint8),
        0 if seen_nV is None else seen_nV.stride(0),
        ids_S,
        V,
        SLOTS=slots_S is not None,
        SEEN=seen_nV is not None,
        LINES=lines,
        LINE=line,
        WORDS=WORDS,
        num_warps=warps(lines * line),
        device=logits_SV.device,
        pdl=True,
    )


def warps(tokens: int) -> int:
    """So many that a thread holds LANE tokens of a block; beyond the largest, the compiler keeps the rest in local memory."""
    return min(max(tokens // (32 * LANE), 1), MOST_WARPS)
