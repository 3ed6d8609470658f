"""From logits to tokens: pure functions on float32 logits (S, V), one row a sequence.

The order is: repetition penalty, temperature, then top-k, top-p and min-p, each on what the one before left, renormalised. All
three filters say "no token less likely than this one", so each is a cut-off, one number a row, and tokens exactly as likely as
the last one kept are kept too. The draw inverts the cumulative distribution in vocabulary order at one uniform number a row:
which numbers they are is the caller's affair, and nothing a row computes depends on its neighbours.

This is the CPU's way, which looks at what each row asks for and saves the rest; ``ops.sample`` does the same on a GPU without
looking.
"""

from collections.abc import Sequence
from math import isnan

import torch
from torch import Tensor

from zamba_lm.engine.request import SamplingParams, TokenLogprobs
from zamba_lm.errors import ZambaError
from zamba_lm.ops.sample.reference import draw, penalise, sharpen

Mask = Tensor | None  # bool (V,) or nothing to mark
TOP_P_WIDTH = 256  # how many of the most likely tokens usually hold top_p; sorting a whole vocabulary costs 10x as much


def argmax(logits_SV: Tensor) -> list[int]:
    """The most likely token of each row; the first of equals. Raises ZambaError for logits that are not numbers."""
    highest_S, ids_S = logits_SV.max(-1)  # on CPU twice as fast as Tensor.argmax
    tokens = ids_S.tolist()
    if any(map(isnan, highest_S.tolist())):
        raise no_numbers()
    return tokens


def no_numbers() -> ZambaError:
    """What to tell when no token can be chosen."""
    return ZambaError("the model's logits are not numbers (NaN): damaged weights, or a dtype that overflows; try float32")


def top_k_cutoff(logits_SV: Tensor, top_k: Sequence[int]) -> Tensor:
    """The k-th highest logit of each row (S, 1); -inf where k is 0 or the vocabulary has no more than k tokens."""
    V = logits_SV.shape[1]
    ranks = [k if 0 < k < V else 0 for k in top_k]
    highest = logits_SV.topk(max(*ranks, 1)).values
    rank_S1 = torch.tensor(ranks, device=logits_SV.device).unsqueeze(1)
    return highest.gather(1, (rank_S1 - 1).clamp_min(0)).masked_fill(rank_S1 == 0, -torch.inf)


def top_p_cutoff(logits_SV: Tensor, top_p_S: Tensor) -> Tensor:
    """The lowest logit (S, 1) among the fewest tokens that hold at least ``top_p`` of the probability; at least one is kept."""
    total_S1 = logits_SV.logsumexp(-1, keepdim=True)
    for width in (TOP_P_WIDTH, logits_SV.shape[1]):
        highest = logits_SV.topk(min(width, logits_SV.shape[1])).values
        mass = (highest - total_S1).exp().cumsum(-1)
        if bool((mass[:, -1] >= top_p_S).all()):
            break
    before = mass.roll(1, -1)
    before[:, 0] = 0
    return highest.masked_fill(before >= top_p_S.unsqueeze(1), torch.inf).amin(-1, keepdim=True)


def min_p_cutoff(logits_SV: Tensor, min_p_S: Tensor) -> Tensor:
    """The logit (S, 1) of a token ``min_p`` times as likely as the most likely one; -inf where min_p is 0."""
    return logits_SV.amax(-1, keepdim=True) + min_p_S.log().unsqueeze(1)


def filtered(logits_SV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Logits with -inf for every token that top-k, top-p and min-p leave out, row by row."""
    device = logits_SV.device
    if any(p.top_k for p in params):
        logits_SV = _cut(logits_SV, top_k_cutoff(logits_SV, [p.top_k for p in params]))
    if rows := [s for s, p in enumerate(params) if p.top_p < 1]:
        top_p_S = torch.tensor([params[s].top_p for s in rows], device=device)
        cutoff_S1 = torch.full((len(params), 1), -torch.inf, device=device)
        cutoff_S1[rows] = top_p_cutoff(logits_SV[rows], top_p_S)
        logits_SV = _cut(logits_SV, cutoff_S1)
    if any(p.min_p for p in params):
        logits_SV = _cut(logits_SV, min_p_cutoff(logits_SV, torch.tensor([p.min_p for p in params], device=device)))
    return logits_SV


def _cut(logits_SV: Tensor, cutoff_S1: Tensor) -> Tensor:
    return logits_SV.masked_fill(logits_SV < cutoff_S1, -torch.inf)


def sample(logits_SV: Tensor, params: Sequence[SamplingParams], seen: Sequence[Mask], uniform: Sequence[float]) -> list[int]:
    """Choose one token a row.

    ``seen[s]`` is a bool (V,) of the tokens in prompt and output where ``params[s].repetition_penalty`` is not 1, else None;
    ``uniform[s]`` a number in [0, 1), not read for greedy rows.
    """
    if any(s is not None for s in seen):
        logits_SV = _penalise_rows(logits_SV, params, seen)
    tokens = argmax(logits_SV)
    if rows := [s for s, p in enumerate(params) if not p.greedy]:
        for s, token in zip(rows, _draw_rows(logits_SV, params, uniform, rows)):
            tokens[s] = token
    return tokens


def _penalise_rows(logits_SV: Tensor, params: Sequence[SamplingParams], seen: Sequence[Mask]) -> Tensor:
    rows = [s for s, mask in enumerate(seen) if mask is not None]
    penalty = torch.tensor([params[s].repetition_penalty for s in rows], device=logits_SV.device)
    penalised = penalise(logits_SV[rows], torch.stack([mask for mask in seen if mask is not None]), penalty)
    return logits_SV.index_copy(0, torch.tensor(rows, device=logits_SV.device), penalised)


def _draw_rows(logits_SV: Tensor, params: Sequence[SamplingParams], uniform: Sequence[float], rows: list[int]) -> list[int]:
    logits_RV, params_R = logits_SV[rows], [params[s] for s in rows]
    temperature = torch.tensor([p.temperature for p in params_R], device=logits_SV.device)
    logits_RV = filtered(sharpen(logits_RV, temperature), params_R)
    return draw(logits_RV, torch.tensor([uniform[s] for s in rows], dtype=torch.float64, device=logits_SV.device)).tolist()


def token_logprobs(logits_SV: Tensor, tokens: Sequence[int], params: Sequence[SamplingParams]) -> list[TokenLogprobs | None]:
    """Log probabilities of the model itself for the chosen tokens and the most likely ones, for the rows that ask for them."""
    return [None if p.logprobs is None else _row_logprobs(logits_SV[s], tokens[s], p.logprobs) for s, p in enumerate(params)]


def _row_logprobs(logits_V: Tensor, token: int, n: int) -> TokenLogprobs:
    logprobs_V = logits_V.log_softmax(-1)
    values, ids = logprobs_V.topk(min(n, len(logprobs_V)))
    return TokenLogprobs(token, logprobs_V[token].item(), tuple(zip(ids.tolist(), values.tolist())))
