"""Memory for time in training: parts of a pass whose inside is not kept for the backward pass but computed there again."""

from collections.abc import Callable
from contextlib import nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zamba_lm.errors import ZambaError
from zamba_lm.ops.dispatch import force, forced

PARTS = ("layers", "blocks", "mixers")  # whole layers with the calls they make; calls of shared blocks alone; mixers alone


def checked(parts: tuple[str, ...]) -> frozenset[str]:
    """The parts as a set. ZambaError for a word that names none."""
    for part in parts:
        if part not in PARTS:
            raise ZambaError(f"cannot recompute {part!r}, expected some of {', '.join(PARTS)}")
    return frozenset(parts)


def again(owner: nn.Module, run: Callable[..., Tensor], *args) -> Tensor:
    """run(*args), of which the backward pass computes the inside anew, by the kernels that ran the first time.

    The state of the random generators is kept and restored where ``owner`` holds something random, as LoRA layers may.
    """
    random = any(isinstance(module, nn.Dropout) and module.p > 0 for module in owner.modules())
    settings: dict = {"use_reentrant": False, "preserve_rng_state": random}
    if choices := forced():
        settings["context_fn"] = lambda: (nullcontext(), force(**choices))
    return checkpoint(run, *args, **settings)
