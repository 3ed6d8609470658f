"""A finished model made ready to write, and undone again for training: the one rule of ``LLM`` and of the benchmarks."""

import torch

from zamba_lm.model.mamba1 import Mamba1
from zamba_lm.model.mamba2 import Mamba2
from zamba_lm.model.merge import link_bytes, merge_adapters, merge_links, merged_bytes, split_adapters
from zamba_lm.model.pack import pack_weights
from zamba_lm.model.zamba import Zamba

SPARE = 0.1  # of a GPU's free memory may go into products made beforehand: links, and adapters, each save 2 % of a token's time


def ready(model: Zamba, *, merge: bool = True) -> Zamba:
    """Prepare a model in place for inference on its device; returns it.

    On a CPU, weights that fit eight bits are packed. On a GPU every call's link is multiplied with what stands
    before it, and its adapters are merged into copies of the weights they correct (see ``merge.py``), unless ``merge`` is false
    or that would take more than ``SPARE`` of the free memory.
    """
    model = pack_weights(model)
    if merge and model.device.type == "cuda":
        room = torch.cuda.mem_get_info(model.device)[0] * SPARE - link_bytes(model)
        if room > 0:
            merge_links(model)
        if room > merged_bytes(model):
            merge_adapters(model)
    return model


def for_training(model: Zamba) -> Zamba:
    """Undo ``ready`` on a GPU, where it changed no parameter: what was derived from them is derived anew; returns the model."""
    for module in model.modules():
        if isinstance(module, Mamba1 | Mamba2):
            module.frozen = None
    return split_adapters(model)
