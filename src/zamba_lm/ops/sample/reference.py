"""The specification of sampling, in plain torch: no loop, no wait for the device."""

import torch
from torch import Tensor

from zamba_lm.ops.sample.philox import uniform
from zamba_lm.ops.sample.settings import COOLEST, Settings


def greedy_reference(logits_SV: Tensor, ids_S: Tensor) -> None:
    ids_S.copy_(_first_of_highest(logits_SV)[1])


def sample_reference(
    logits_SV: Tensor, settings: Settings, ids_S: Tensor, seen_nV: Tensor | None, slots_S: Tensor | None
) -> None:
    slots_S = torch.arange(len(ids_S), device=ids_S.device) if slots_S is None else slots_S.long()
    logits_SV, temperature_S = logits_SV.float(), settings.temperature[slots_S]
    if seen_nV is not None:
        logits_SV = penalise(logits_SV, seen_nV[slots_S].bool(), settings.repetition_penalty[slots_S])
    highest_S, first_S = _first_of_highest(logits_SV)
    warm_SV = sharpen(logits_SV, temperature_S)
    kept_SV = warm_SV.masked_fill(warm_SV < cutoff(warm_SV, settings, slots_S), -torch.inf)
    drawn_S = draw(kept_SV, uniform(settings.seed[slots_S], settings.drawn[slots_S]))
    drawn_S = torch.where(highest_S.isfinite(), drawn_S, -1)  # an infinite logit leaves nothing to draw from
    random_S = temperature_S > 0
    ids_S.copy_(torch.where(random_S, drawn_S, first_S))
    settings.drawn.index_add_(0, slots_S, (random_S & (ids_S >= 0)).long())
    if seen_nV is not None:
        place = (slots_S, ids_S.clamp_min(0))
        seen_nV[place] = (seen_nV[place].bool() | (ids_S >= 0)).to(seen_nV.dtype)


def _first_of_highest(logits_SV: Tensor) -> tuple[Tensor, Tensor]:
    """The highest logit of each row and its first token; -1 for rows that hold a NaN."""
    highest_S, first_S = logits_SV.max(-1)
    return highest_S, torch.where(highest_S.isnan(), -1, first_S)


def penalise(logits_SV: Tensor, seen_SV: Tensor, penalty_S: Tensor) -> Tensor:
    """Make tokens marked in ``seen_SV`` (bool) less likely: divide positive logits by the penalty, multiply negative ones."""
    penalty_S1 = penalty_S.unsqueeze(1)
    penalised_SV = torch.where(logits_SV > 0, logits_SV / penalty_S1, logits_SV * penalty_S1)
    return torch.where(seen_SV, penalised_SV, logits_SV)


def sharpen(logits_SV: Tensor, temperature_S: Tensor) -> Tensor:
    """Divide by the temperature, the highest logit of each row moved to 0 so that no temperature overflows."""
    return (logits_SV - logits_SV.amax(-1, keepdim=True)) / temperature_S.clamp_min(COOLEST).unsqueeze(1)


def cutoff(warm_SV: Tensor, settings: Settings, slots_S: Tensor) -> Tensor:
    """The lowest logit (S, 1) that top-k, top-p and min-p keep, for logits whose highest is 0."""
    V = warm_SV.shape[1]
    ordered_SV = warm_SV.sort(-1, descending=True).values
    k_S1 = settings.top_k[slots_S].long().unsqueeze(1)
    k_S1 = torch.where((k_S1 > 0) & (k_S1 < V), k_S1, V)
    by_k_S1 = ordered_SV.gather(1, k_S1 - 1)
    weight_SV = ordered_SV.exp().masked_fill(ordered_SV < by_k_S1, 0).double()
    up_to_SV = weight_SV.cumsum(-1)
    top_p_S1 = settings.top_p[slots_S].unsqueeze(1)
    # A token is kept while those before it hold less than top_p; the first always is.
    kept_SV = (up_to_SV - weight_SV < top_p_S1 * up_to_SV[:, -1:]) | (top_p_S1 >= 1)
    kept_SV[:, 0] = True
    by_p_S1 = ordered_SV.masked_fill(~kept_SV, torch.inf).amin(-1, keepdim=True)
    by_min_p_S1 = settings.min_p[slots_S].log().unsqueeze(1)
    return torch.maximum(torch.maximum(by_k_S1, by_p_S1), by_min_p_S1)


def draw(logits_SV: Tensor, uniform_S: Tensor) -> Tensor:
    """One token a row, (S,) int64: the first whose cumulative probability exceeds ``uniform_S`` (float64, in [0, 1)).

    Summed in float64, because the running sum of a large vocabulary in float32 would round rare tokens away.
    """
    cumulative_SV = (logits_SV - logits_SV.amax(-1, keepdim=True)).exp().cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative_SV, uniform_S.unsqueeze(1) * cumulative_SV[:, -1:], right=True).squeeze(1)
