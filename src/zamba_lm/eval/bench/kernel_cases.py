"""Which ops are measured at which sizes, as data. ``rows``: sequences that decode; ``tokens``: of one sequence that is read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from zamba_lm.eval.bench import kernel_decode as decode
from zamba_lm.eval.bench import kernel_sequence as sequence
from zamba_lm.eval.bench import kernel_small as small
from zamba_lm.eval.bench import kernel_training as training
from zamba_lm.model.config import ZambaConfig

BOTH = ("zamba", "zamba2")
CALLS = ("qkv", "o", "gate_up", "down", "link")  # projections that only a model with shared blocks has


@dataclass(frozen=True)
class KernelCase:
    """``op`` is the name in the dispatch table, ``build(config, rows, tokens, draw, copies)`` makes the ``Work``.

    ``sizes``: "decode" goes through --batch with --context as the past, "sequence" through --context with one sequence.
    ``hybrid``: only models with shared blocks have it.
    """

    name: str
    op: str
    build: Callable
    sizes: str
    families: tuple[str, ...] = BOTH
    hybrid: bool = False
    per_context: bool = False  # does the past matter to a decode case?
    gradients: bool = False

    def fits(self, c: ZambaConfig) -> bool:
        return c.family in self.families and (c.n_calls > 0 or not self.hybrid)


def _projection(place: str) -> KernelCase:
    build = partial(decode.projection, place=place)
    return KernelCase(f"linear {place}", "linear", build, "decode", hybrid=place in CALLS)


def _sequence(name: str, op: str, build, families=BOTH, hybrid=False) -> tuple[KernelCase, KernelCase]:
    """Forward, and forward with backward."""
    both = KernelCase(
        f"{name}, forward + backward", op, partial(build, backward=True), "sequence", families, hybrid, gradients=True
    )
    return KernelCase(name, op, build, "sequence", families, hybrid), both


KERNELS = (
    *map(_projection, ("in_proj", "out_proj", "qkv", "o", "down", "link", "head")),
    KernelCase("gated_linear", "gated_linear", decode.gated, "decode", hybrid=True),
    KernelCase("mamba2_step", "mamba2_step", decode.mixer2, "decode", ("zamba2",)),
    KernelCase("mamba1_step", "mamba1_step", decode.mixer1, "decode", ("zamba",)),
    KernelCase("step", "step", small.recurrence, "decode"),
    KernelCase("adapter", "adapter", small.correction, "decode", hybrid=True),
    KernelCase("opening", "opening", small.beginning, "decode"),
    KernelCase("greedy", "greedy", small.likeliest, "decode"),
    KernelCase("sample", "sample", small.drawn, "decode"),
    KernelCase("attention, one token", "attention", decode.paged, "decode", hybrid=True, per_context=True),
    *_sequence("conv", "conv", sequence.conv),
    *_sequence("ssd", "ssd", sequence.ssd, ("zamba2",)),
    *_sequence("scan", "scan", sequence.scan, ("zamba",)),
    *_sequence("attention", "attention", sequence.prompt_attention, hybrid=True),
    *_sequence("norm", "norm", sequence.plain_norm),
    *_sequence("gated_norm", "gated_norm", sequence.mixer_norm, ("zamba2",)),
    *_sequence("mixer inside", "mamba2", training.inside, ("zamba2",)),
    *_sequence("mixer", "mamba2_mixer", training.mixer, ("zamba2",)),
    *_sequence("attention, joined", "self_attention", training.joined_attention, hybrid=True),
    *_sequence("gate", "gate", training.gating, hybrid=True),
    KernelCase("token scores, forward + backward", "token_scores", training.scores, "sequence", gradients=True),
    KernelCase("rope", "rope", small.rotation, "sequence", hybrid=True),
    KernelCase("head and loss, forward + backward", "xent", sequence.head_loss, "sequence", gradients=True),
)
