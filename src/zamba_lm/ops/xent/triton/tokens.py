"""token_scores around the kernel of the loss: what it writes beside the loss is all there is to say of a token.

Every token has a gradient of its own from above, which is known in the backward pass only. For x's gradient that is a factor of a
row, put in afterwards; for the head's it is a factor of x's rows. So the slopes of the logits are made once, while the logits are
at hand; where they are too many to be kept until then, and the head learns, they are made a second time.
"""

import torch

from zamba_lm.ops.linear.weights import outer
from zamba_lm.ops.xent.tokens import TokenScores
from zamba_lm.ops.xent.triton import CHUNK_BYTES, chunk, loss, operands

KEPT = CHUNK_BYTES  # bytes of slopes that wait for the backward pass, at most


def token_scores_triton(x_TD, weight_VD, targets_T):
    return TokenScores(*_TokenScores.apply(*operands(x_TD, weight_VD), targets_T))


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, weight_VD, targets_T):
        (T, D), V, ctx.dtype = x_TD.shape, len(weight_VD), weight_VD.dtype
        weight_VD = weight_VD.to(x_TD.dtype)
        want_x, want_w = ctx.needs_input_grad[:2]
        ctx.kept = want_w and 0 < T * V * x_TD.element_size() <= KEPT
        ctx.step = T if ctx.kept else chunk(V, D, x_TD.element_size())
        losses_T, entropy_T, mean_T = x_TD.new_empty(3, T, dtype=torch.float32)
        top_T = x_TD.new_empty(T, dtype=torch.uint8)
        dx_TD, slopes_TV = torch.empty_like(x_TD) if want_x else None, None
        for part in _parts(T, ctx.step):
            scores = losses_T[part], entropy_T[part], mean_T[part], top_T[part]
            slopes_TV = _slopes(x_TD[part], weight_VD, targets_T[part], scores, gradient=want_x or ctx.kept)
            if dx_TD is not None:
                torch.mm(slopes_TV, weight_VD, out=dx_TD[part])
        again = want_w and not ctx.kept
        ctx.save_for_backward(
            dx_TD, x_TD if want_w else None, slopes_TV if ctx.kept else None, *((weight_VD, targets_T) if again else (None, None))
        )
        top_T = top_T.view(torch.bool)
        ctx.mark_non_differentiable(entropy_T, mean_T, top_T)
        return -losses_T, entropy_T, mean_T, top_T

    @staticmethod
    def backward(ctx, scale_T, *_):
        dx_TD, x_TD, slopes_TV, weight_VD, targets_T = ctx.saved_tensors
        dx_TD = None if dx_TD is None else _scaled(dx_TD, scale_T)
        if x_TD is None:
            return dx_TD, None, None
        if ctx.kept:
            return dx_TD, outer(slopes_TV, _scaled(x_TD, scale_T), ctx.dtype), None
        dw_VD, unread_T = None, x_TD.new_empty(len(x_TD), dtype=torch.float32)
        for part in _parts(len(x_TD), ctx.step):
            slopes_TV = _slopes(x_TD[part], weight_VD, targets_T[part], (unread_T[part], None, None, None), gradient=True)
            dw_VD = outer(slopes_TV, _scaled(x_TD[part], scale_T[part]), torch.float32, dw_VD)
        return dx_TD, torch.zeros_like(weight_VD, dtype=ctx.dtype) if dw_VD is None else dw_VD.to(ctx.dtype), None


def _parts(T: int, step: int):
    return (slice(start, start + step) for start in range(0, T, step))


def _slopes(x_TD, weight_VD, targets_T, scores, *, gradient: bool):
    """Write ``scores``: loss, entropy, mean and top. d loss / d logits where ``gradient``, else the logits."""
    logits_TV = torch.mm(x_TD, weight_VD.T, out=x_TD.new_empty(len(x_TD), len(weight_VD)))  # with out, autocast keeps away
    loss(logits_TV, targets_T, scores[0], gradient, scores[1:])
    return logits_TV


def _scaled(rows_TD, scale_T):
    """What is known of a loss, for the log-probability: minus it, times what comes from above."""
    return (rows_TD * -scale_T[:, None]).to(rows_TD.dtype)
