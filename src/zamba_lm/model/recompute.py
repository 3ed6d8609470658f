"""Memory for time in training: parts of a pass whose inside is not kept for the backward pass but computed there again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zamba_lm.errors import ZambaError
from zamba_lm.ops.dispatch import force, forced
from zamba_lm.ops.soon import backward_follows

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
    choices = forced()
    return checkpoint(
        run,
        *args,
        use_reentrant=False,
        preserve_rng_state=random,
        context_fn=lambda: (nullcontext(), _second(choices)),
        determinism_check="none",  # an op may keep more the second time (ops/soon.py)
    )


@contextmanager
def _second(choices: dict[str, str]) -> Iterator[None]:
    """The second time: by the kernels of the first, and for a backward pass that is under way."""
    with force(**choices) if choices else nullcontext(), backward_follows():
        yield
