"""The head and its loss: linear layer and cross-entropy without ever holding all logits."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels, lazy, no_triton
from zamba_lm.ops.xent.compiled import xent_compiled
from zamba_lm.ops.xent.reference import xent_reference
from zamba_lm.ops.xent.tokens import TokenScores, token_scores_reference

XENT = Op(
    "xent",
    (
        kernels("xent", "xent_triton"),
        Implementation("reference", xent_reference),
        Implementation("compiled", xent_compiled),
    ),
)
TOKEN_SCORES = Op(
    "token_scores",
    (
        Implementation("triton", lazy("zamba_lm.ops.xent.triton.tokens", "token_scores_triton"), no_triton),
        Implementation("reference", token_scores_reference),
    ),
)

__all__ = ["TOKEN_SCORES", "XENT", "TokenScores", "token_logprobs", "token_scores", "xent"]


def xent(x_TD, weight_VD, targets_T):
    """Sum over tokens of -log softmax(W x)[target], in nats, as a float32 scalar.

    x_TD: hidden states, weight_VD: the head, targets_T: int64, negative entries do not count. Products are in bfloat16 when x is,
    or under autocast; softmax and sum in float32. Differentiable in x and the weight.
    """
    _check(x_TD, weight_VD, targets_T)
    return XENT(x_TD.device)(x_TD, weight_VD, targets_T)


def token_scores(x_TD, weight_VD, targets_T) -> TokenScores:
    """log softmax(W x)[target] of every token, and what is worth logging beside it: ``TokenScores`` of four (T,) tensors.

    Arguments as for ``xent``; log-probabilities are float32 (float64 for such x) and differentiable in x and the weight, the
    others are not. Tokens whose target is negative get zeros.
    """
    _check(x_TD, weight_VD, targets_T)
    return TOKEN_SCORES(x_TD.device)(x_TD, weight_VD, targets_T)


def token_logprobs(x_TD, weight_VD, targets_T):
    """log softmax(W x)[target], (T,), 0 where the target is negative; see ``token_scores``."""
    return token_scores(x_TD, weight_VD, targets_T).logprob_T


def _check(x_TD, weight_VD, targets_T):
    if x_TD.dim() != 2 or targets_T.shape != x_TD.shape[:1] or weight_VD.shape[1] != x_TD.shape[1]:
        raise ValueError(
            f"x {tuple(x_TD.shape)}, weight {tuple(weight_VD.shape)} and targets {tuple(targets_T.shape)} do not fit"
        )
