"""One call of an op at a size: its inputs, what it moves and computes, and who else can do it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from zamba_lm.eval.bench.costs import Cost


class Draw:
    """Random inputs, the same for every dtype: drawn in float32 by seed, rounded to ``narrow``, then given in ``dtype``."""

    def __init__(self, device: torch.device, narrow: torch.dtype, dtype: torch.dtype | None = None, seed: int = 0):
        self.device, self.narrow, self.dtype = device, narrow, dtype or narrow
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Normal numbers, in the model's dtype."""
        return self.wide(*shape, scale=scale).to(self.narrow).to(self.dtype)

    def wide(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Normal numbers, float32 whatever the model's dtype."""
        return torch.randn(shape, device=self.device, generator=self.generator) * scale

    def steps(self, *shape: int) -> torch.Tensor:
        """Time steps as trained ones are: log-uniform in [0.001, 0.1], float32."""
        return torch.rand(shape, device=self.device, generator=self.generator).mul_(4.6).exp_().mul_(1e-3)

    def rates(self, *shape: int) -> torch.Tensor:
        """Decay rates A, negative, float32."""
        return -torch.rand(shape, device=self.device, generator=self.generator).mul_(15).add_(1)


@dataclass
class Work:
    """``run(inputs)`` calls the op on one of the ``sets`` of inputs and returns what to compare; ``peers`` do the same by other
    means, ``parts`` only some of it, so they are timed without being compared."""

    sets: list  # of inputs, each for one call
    run: Callable
    cost: Cost
    peers: dict[str, Callable] = field(default_factory=dict)
    parts: dict[str, Callable] = field(default_factory=dict)


def size_of(*tensors: torch.Tensor | None) -> int:
    """Bytes of tensors."""
    return sum(t.nbytes for t in tensors if t is not None)


def product_flops(rows: int, *weights: torch.Tensor) -> int:
    return sum(2 * rows * w.numel() for w in weights)


def outputs(found) -> list[torch.Tensor]:
    """The tensors of a result, whatever holds them."""
    if isinstance(found, torch.Tensor):
        return [found]
    return [t for part in found or () for t in outputs(part)] if isinstance(found, Iterable) else []


def with_gradients(forward: Callable, wanted: Callable) -> Callable:
    """Forward and backward: a run that returns the output and the gradients of ``wanted(inputs)`` for a loss that weighs every
    element of it differently."""

    def run(inputs):
        leaves = leaves_of(wanted(inputs))
        y = outputs(forward(inputs, leaves))[0]
        return [y.detach(), *torch.autograd.grad(y, leaves, loss_weights(y.shape, y.dtype, y.device))]

    return run


def leaves_of(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The same numbers, of which gradients are asked."""
    return [t.detach().requires_grad_(True) for t in tensors]


@lru_cache(4)  # made before anything is timed
def loss_weights(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The gradient of the loss by the output."""
    return torch.linspace(-1, 1, shape.numel(), device=device).view(shape).to(dtype)
