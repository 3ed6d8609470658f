"""The slow, obvious way to continue a text: the oracle the engine is held against."""

import torch

from zamba_lm.model.zamba import Zamba


@torch.inference_mode()
def generate(model: Zamba, prompt_ids: list[int], max_tokens: int, eos_ids: tuple[int, ...] = ()) -> list[int]:
    """Greedy continuation of one prompt: at most ``max_tokens`` new ids, ending after an id of ``eos_ids``."""
    state = model.new_state(1)
    new, ids = [], list(prompt_ids)
    while len(new) < max_tokens and not (new and new[-1] in eos_ids):
        logits_BTV = model.logits(torch.tensor([ids]), state)
        ids = [int(logits_BTV[0, -1].argmax())]
        new += ids
    return new
