"""The next token of every sequence, chosen on the device: nothing waits for the host, so a captured graph can hold it."""

import torch

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.sample.philox import uniform
from zamba_lm.ops.sample.reference import greedy_reference, sample_reference
from zamba_lm.ops.sample.settings import Settings

__all__ = ["GREEDY", "SAMPLE", "Settings", "greedy", "sample", "uniform"]

GREEDY = Op(
    "greedy",
    (
        kernels("sample", "greedy_triton"),
        Implementation("reference", greedy_reference),
    ),
)
SAMPLE = Op(
    "sample",
    (
        kernels("sample", "sample_triton"),
        Implementation("reference", sample_reference),
    ),
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def greedy(logits_SV, ids_S):
    """The most likely token of each row, the first of equals, written into ``ids_S`` (int64); -1 for a row that holds a NaN."""
    _fits(logits_SV, ids_S)
    return GREEDY(logits_SV.device)(logits_SV, ids_S)


def sample(logits_SV, settings: Settings, ids_S, seen_nV=None, slots_S=None):
    """One token a row, chosen as the settings of its slot say and written into ``ids_S`` (int64).

    logits_SV: any float dtype, rows may have a stride. settings: n slots; row s belongs to slot ``slots_S[s]`` (int32, on the
    device, no slot twice unless nobody reads it), or to slot s where slots_S is None. Temperature 0 takes the most likely token,
    the first of equals. Otherwise, in this order: repetition penalty, temperature, top-k, top-p, min-p, each filter on what the
    one before left and with tokens exactly as likely as the last one kept; then the first token in vocabulary order whose
    cumulative probability exceeds the slot's next random number, ``uniform(seed, drawn)``, and ``drawn`` grows by one in place.
    seen_nV: bool or uint8, the tokens of each slot's text, which the penalty looks up; the chosen one is marked. None: the
    penalties are not read. A row that holds a NaN, or whose highest logit is infinite and that is to be drawn, gets -1 and marks
    nothing.
    """
    S, V = _fits(logits_SV, ids_S)
    n = len(settings)
    if (slots_S is None and S > n) or (slots_S is not None and slots_S.shape != (S,)):
        slots = "no slots" if slots_S is None else f"slots {tuple(slots_S.shape)}"
        raise ValueError(f"{S} rows with {slots} do not fit settings for {n} slots")
    if seen_nV is not None and (seen_nV.shape != (n, V) or seen_nV.dtype not in (torch.bool, torch.uint8)):
        raise ValueError(f"seen is {tuple(seen_nV.shape)} {seen_nV.dtype}, expected bool or uint8 {(n, V)}")
    return SAMPLE(logits_SV.device)(logits_SV, settings, ids_S, seen_nV, slots_S)


def _fits(logits_SV, ids_S) -> tuple[int, int]:
    if logits_SV.dim() != 2 or ids_S.shape != logits_SV.shape[:1] or ids_S.dtype != torch.int64:
        raise ValueError(f"ids {tuple(ids_S.shape)} {ids_S.dtype} do not fit logits {tuple(logits_SV.shape)}, expected int64")
    if logits_SV.dtype not in DTYPES or logits_SV.stride(1) != 1:
        raise ValueError(f"logits are {logits_SV.dtype} with strides {logits_SV.stride()}, expected whole rows of a float dtype")
    return logits_SV.shape
