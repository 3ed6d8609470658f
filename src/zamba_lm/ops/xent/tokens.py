"""What the head says of each token's target, a few thousand tokens at a time, so that no (T, V) logits are ever held."""

from typing import NamedTuple

import torch

from zamba_lm.ops.xent.reference import operands

CHUNK = 1024  # tokens whose logits exist at once, in float32 and a few times over


class TokenScores(NamedTuple):
    """One number a token: the target's log-probability, the entropy of the distribution, the mean logit, whether the target is
    the most likely token. Zero and False where the target is negative."""

    logprob_T: torch.Tensor
    entropy_T: torch.Tensor
    mean_T: torch.Tensor
    top_T: torch.Tensor


def token_scores_reference(x_TD, weight_VD, targets_T):
    return TokenScores(*_TokenScores.apply(*operands(x_TD, weight_VD), targets_T))


class _TokenScores(torch.autograd.Function):
    """Every token has a gradient of its own from above. With a frozen head the rows of x's gradient are made while the logits are
    at hand and scaled later; the head's own gradient mixes all tokens, so for it the logits are computed a second time."""

    @staticmethod
    def forward(ctx, x_TD, weight_VD, targets_T):
        want_x, want_w = ctx.needs_input_grad[:2]
        made = want_x and not want_w
        T, wide = len(x_TD), torch.promote_types(x_TD.dtype, torch.float32)
        logprob_T, entropy_T, mean_T, log_z_T = (x_TD.new_zeros(T, dtype=wide) for _ in range(4))
        top_T = torch.zeros_like(targets_T, dtype=torch.bool)
        dx_TD = torch.empty_like(x_TD) if made else None
        for part in _parts(T):
            logits_TV = (x_TD[part] @ weight_VD.T).to(wide)
            log_z_T[part], *scores = _scores(logits_TV, targets_T[part])
            for into, value in zip((logprob_T, entropy_T, mean_T, top_T), scores):
                into[part] = value
            if made:
                dx_TD[part] = _slopes(logits_TV, log_z_T[part], targets_T[part]).to(x_TD.dtype) @ weight_VD
        ctx.made = made
        ctx.save_for_backward(*((dx_TD,) if made else (x_TD, weight_VD, targets_T, log_z_T)))
        ctx.mark_non_differentiable(entropy_T, mean_T, top_T)
        return logprob_T, entropy_T, mean_T, top_T

    @staticmethod
    def backward(ctx, scale_T, *_):
        if ctx.made:
            (dx_TD,) = ctx.saved_tensors
            return (dx_TD * scale_T[:, None]).to(dx_TD.dtype), None, None
        x_TD, weight_VD, targets_T, log_z_T = ctx.saved_tensors
        want_x, _ = ctx.needs_input_grad[:2]
        dx_TD = torch.empty_like(x_TD) if want_x else None
        dw_VD = torch.zeros_like(weight_VD, dtype=log_z_T.dtype)
        for part in _parts(len(x_TD)):
            logits_TV = (x_TD[part] @ weight_VD.T).to(log_z_T.dtype)
            slopes_TV = _slopes(logits_TV, log_z_T[part], targets_T[part]).mul_(scale_T[part, None]).to(x_TD.dtype)
            if want_x:
                torch.mm(slopes_TV, weight_VD, out=dx_TD[part])
            dw_VD += slopes_TV.T @ x_TD[part]
        return dx_TD, dw_VD.to(weight_VD.dtype), None


def _parts(T):
    return (slice(start, start + CHUNK) for start in range(0, T, CHUNK))


def _scores(logits_TV, targets_T):
    """log Z, then what TokenScores holds."""
    counted = targets_T >= 0
    log_z_T = torch.logsumexp(logits_TV, dim=-1)
    hit_T = logits_TV.gather(1, targets_T.clamp(min=0)[:, None])[:, 0]
    entropy_T = log_z_T - (torch.exp(logits_TV - log_z_T[:, None]) * logits_TV).sum(-1)
    top_T = hit_T == logits_TV.amax(-1)
    return log_z_T, (hit_T - log_z_T) * counted, entropy_T * counted, logits_TV.mean(-1) * counted, top_T & counted


def _slopes(logits_TV, log_z_T, targets_T):
    """d log p(target) / d logits."""
    slopes_TV = torch.exp(logits_TV - log_z_T[:, None]).neg_()
    slopes_TV.scatter_add_(1, targets_T.clamp(min=0)[:, None], torch.ones_like(log_z_T)[:, None])
    return slopes_TV.mul_((targets_T >= 0)[:, None])
