"""The beginning of a step in one kernel: a small one of torch's takes two microseconds and ends a chain of dependent ones."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch, power_of_two

PAGES = 64  # of a row at a time


@triton.jit
def opening_kernel(
    x,
    pages,
    past,
    ids,
    embedding,
    table,
    slots,
    ages,
    grows,
    table_stride,
    M,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program for each row. Kernels further down the chain read pages and ages before they wait, which hold for what is older
    than the chain: so these are written, and seen by all, before any of those may start."""
    s = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
    d = tl.arange(0, BLOCK)
    row = tl.load(embedding + tl.maximum(tl.load(ids + s), 0) * D + d, mask=d < D, other=0.0)
    own = table + tl.load(slots + s).to(tl.int64) * table_stride
    age, growth = tl.load(ages + s), tl.load(grows + s)
    for first in range(0, M, PAGES):
        m = first + tl.arange(0, PAGES)
        tl.store(pages + s * M + m, tl.load(own + m, mask=m < M, other=0), mask=m < M)
    tl.store(past + s, age)
    tl.debug_barrier()  # all threads have read the age
    tl.store(ages + s, age + growth)
    if PDL:
        seen_by_all(d)
        tl.debug_barrier()
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(x + s * D + d, row, mask=d < D)


@triton.jit
def seen_by_all(d):
    """Wait until what each thread has written can be seen by the whole GPU."""
    tl.inline_asm_elementwise("fence.acq_rel.gpu; mov.u32 $0, $1;", "=r,r", [d], dtype=tl.int32, is_pure=False, pack=1)


def opening_triton(ids_S, embedding_VD, table_nM, slots_S, ages_S, grows_S):
    (S, D), M = (len(ids_S), embedding_VD.shape[1]), table_nM.shape[1]
    x_SD = torch.empty(S, D, dtype=embedding_VD.dtype, device=ids_S.device)
    pages_SM, past_S = torch.empty(S, M, dtype=table_nM.dtype, device=ids_S.device), torch.empty_like(ages_S)
    block = power_of_two(D)
    launch(
        opening_kernel,
        (S,),
        *(x_SD, pages_SM, past_S, ids_S, embedding_VD, table_nM, slots_S, ages_S, grows_S, table_nM.stride(0), M),
        D=D,
        BLOCK=block,
        PAGES=PAGES,
        num_warps=max(1, min(8, block // 512)),
        device=ids_S.device,
        pdl=True,
    )
    return x_SD, pages_SM, past_S
