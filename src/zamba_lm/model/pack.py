"""Pack a finished model's projections for the processor it runs on: the same numbers, read in half the time."""

from zamba_lm.model.mamba1 import Mamba1
from zamba_lm.model.mamba2 import Mamba2
from zamba_lm.model.parts import Linear
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.linear import can_pack, pack


def pack_weights(model: Zamba) -> Zamba:
    """Pack in place, on a CPU, the projections that fit eight bits (``ops.linear.pack``), and give the head such a copy of the
    embedding; returns the model.

    Mixers also keep their constants (``freeze_constants``). Only for inference: packed weights take no gradient, and later
    changes to the parameters would not be seen. Saving unpacks. Projections that gain nothing stay as they are: large ones are
    views of their file, and reading them once is all the loading there is.
    """
    for module in model.modules():
        if isinstance(module, Linear) and can_pack(module.weight):
            module.pack()
    if can_pack(model.embedding.weight):
        head, scale = pack(model.embedding.weight)
        model.head = None if scale is None else (head, scale)
    return freeze_constants(model)


def freeze_constants(model: Zamba) -> Zamba:
    """Let mixers keep their small float32 constants instead of deriving them anew in every pass; returns the model.

    For inference: later changes to conv weights, A_log, D and dt_bias would not be seen.
    """
    for module in model.modules():
        if isinstance(module, Mamba1 | Mamba2):
            module.frozen = tuple(one.detach() for one in module.constants())
    return model
