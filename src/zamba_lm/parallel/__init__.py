"""One model over several GPUs: every rank holds a share of each layer, and all ranks say the same."""

from zamba_lm.parallel.group import Ranks, join, leave
from zamba_lm.parallel.load import load_parallel, random_parallel, tensor_parallel
from zamba_lm.parallel.model import ParallelZamba

__all__ = ["ParallelZamba", "Ranks", "join", "leave", "load_parallel", "random_parallel", "tensor_parallel"]
