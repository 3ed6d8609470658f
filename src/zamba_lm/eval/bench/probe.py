"""Both sides and the exact pass on one probe: the numbers that ``agree.judge`` judges."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from zamba_lm.eval.bench.agree import Agreement, error, judge, regret, relative
from zamba_lm.eval.bench.decoder import Decoder, random_ids
from zamba_lm.eval.bench.exact import exact
from zamba_lm.model.dtypes import dtype_name
from zamba_lm.model.names import pieces
from zamba_lm.model.zamba import Zamba

TOKENS = 96
TEXTS = {"cuda": 8}  # on other devices one: an exact pass takes a CPU minutes
NEW = 24  # tokens that each side decodes
MATRICES = ("layers.0.mixer.out_proj.weight", "blocks.0.down.weight", "blocks.0.o.weight")  # of which gradients are compared


@torch.inference_mode()
def inference(model: Zamba, theirs: nn.Module, reference: Zamba, ours: Decoder, their: Decoder, seed: int) -> Agreement:
    """Logits and greedy tokens. ``reference``: an exact copy; the decoders hold one sequence each."""
    n_texts, vocab = TEXTS.get(model.device.type, 1), model.config.vocab_size
    texts = [random_ids(1, TOKENS, vocab, seed + 1 + n) for n in range(n_texts)]
    start_BT = texts[0][:, : TOKENS // 2]
    written = [_continued(decoder, start_BT) for decoder in (ours, their)]
    errors = [_errors(model, theirs, reference, ids_BT) for ids_BT in texts]
    with exact(reference.dtype):
        regrets = [_regret(reference, start_BT, tokens) for tokens in written]
    return judge(dtype_name(model.dtype), dtype_name(reference.dtype), [list(side) for side in zip(*errors)], regrets)


def _errors(model: Zamba, theirs: nn.Module, reference: Zamba, ids_BT: torch.Tensor) -> list[float]:
    """Of our logits and of theirs after every token of a text."""
    found = [model.logits(ids_BT)[0], _their_logits(theirs, ids_BT.to(model.device))[0]]
    with exact(reference.dtype):
        exact_TV = reference.logits(ids_BT)[0]
    return [error(logits, exact_TV) for logits in found]


def _their_logits(theirs: nn.Module, ids_BT: torch.Tensor) -> torch.Tensor:
    return theirs(ids_BT, use_cache=False).logits.float()


def _continued(decoder: Decoder, ids_BT: torch.Tensor) -> torch.Tensor:
    """The tokens (1, n) that a side adds to a prompt."""
    decoder.start(ids_BT)
    for _ in range(NEW):
        decoder.step()
    return decoder.tokens()


def _regret(reference: Zamba, prompt_BT: torch.Tensor, tokens_BT: torch.Tensor) -> float:
    """What the tokens (1, n) lose against those that the exact pass would have chosen in their place."""
    whole_BT = torch.cat([prompt_BT, tokens_BT[:, :-1]], 1)
    saw_TV = reference.logits(whole_BT)[0, prompt_BT.shape[1] - 1 :]
    return regret(tokens_BT[0].to(saw_TV.device), saw_TV)


def training(model: Zamba, theirs: nn.Module, reference: Zamba, seed: int) -> Agreement:
    """Logits and gradients of a few matrices."""
    ids_BT = random_ids(1, TOKENS, model.config.vocab_size, seed + 1).to(model.device)
    names = [name for name in MATRICES if name in dict(model.named_parameters())]
    places = {piece.target: piece.names[0] for piece in pieces(model.config, "hf")}
    ours = _gradients([model.get_parameter(name) for name in names], ids_BT, model.logits)
    their = _gradients(
        [theirs.get_parameter(places[name]) for name in names], ids_BT, lambda ids_BT: _their_logits(theirs, ids_BT)
    )
    with exact(reference.dtype):
        true = _gradients([reference.get_parameter(name) for name in names], ids_BT, reference.logits)
    errors = [error(side[0], true[0]) for side in (ours, their)]
    gradients = [relative(side[1], true[1]) for side in (ours, their)]
    return judge(dtype_name(model.dtype), dtype_name(reference.dtype), errors, gradients=gradients)


def _gradients(wanted: list[nn.Parameter], ids_BT: torch.Tensor, logits: Callable):
    """Logits (T, V) and the gradients of the mean loss of next tokens by some parameters, the only ones that ask for any."""
    for parameter in wanted:
        parameter.requires_grad_(True)
    found_TV = logits(ids_BT)[0]
    gradients = torch.autograd.grad(F.cross_entropy(found_TV[:-1], ids_BT[0, 1:]), wanted)
    for parameter in wanted:
        parameter.requires_grad_(False)
    return found_TV.detach(), list(gradients)
