"""The memory of a run before it begins, by closed arithmetic: what must be there, what activations take, what fits.

Everything is bytes on one device. Weights, gradients and moments are exact; activations are counted from what the operations keep
for the backward pass, in bfloat16 (float32 without ``bf16``), and are an estimate: within a fifth of what was measured on one
H200 (tests/train/trainer/test_plan.py has the numbers).
"""

from dataclasses import dataclass
from math import prod
from typing import cast

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.names import parameter_shapes
from zamba_lm.parallel.shard import Shard

RECOMPUTE = ("none", "mixers", "blocks", "layers")
SPARE = 0.92  # share of a device that may be planned for; the rest is the driver's and fragmentation's
XENT_TOKENS = 32768  # tokens whose logits exist at once, at most
STATE_TOKENS = 256  # tokens from one kept state of a mixer to the next
AGAIN = 1.5  # of what a recomputed part keeps: it and its gradients are there together


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    products: int  # bfloat16 copies of the weights for the products; of a model in pieces what is gathered at once
    gradients: int
    moments: int
    activations: int

    @property
    def fixed(self) -> int:
        return self.weights + self.products + self.gradients + self.moments

    @property
    def total(self) -> int:
        return self.fixed + self.activations


def memory(
    c: ZambaConfig,
    *,
    row: int,
    micro: int,
    recompute: str,
    optimizer: str,
    bf16: bool,
    pieces: int = 1,
    keep: str = "blocks",
    tensor: int = 1,
) -> Memory:
    """What training takes with ``micro`` rows of ``row`` tokens at once. ``pieces``: devices over which the model is spread, of
    which ``keep`` is kept gathered; ``tensor``: devices that split every layer between them (``train/scale``)."""
    item = 2 if bf16 else 4
    c = cast(ZambaConfig, Shard(c, 0, tensor)) if tensor > 1 else c
    n = sum(map(prod, parameter_shapes(c).values()))
    matrices = matrix_params(c) if optimizer == "muon" else 0
    moments = 4 * matrices + 8 * (n - matrices)
    gathered, on_their_way = (0, 0) if pieces == 1 else gathered_params(c, keep)
    return Memory(
        weights=4 * n // pieces,
        products=item * gathered if pieces > 1 else 2 * n if bf16 else 0,
        gradients=4 * (n // pieces + on_their_way),
        moments=moments // pieces,
        activations=activations(c, row * micro, recompute, item),
    )


def gathered_params(c: ZambaConfig, keep: str) -> tuple[int, int]:
    """Parameters that a device of several holds beside its piece: gathered at once (the embedding counts twice, being float32),
    and of which gradients are on their way to the others."""
    n_blocks = c.n_blocks if c.n_calls else 0
    sizes = {name: prod(shape) for name, shape in parameter_shapes(c).items()}
    embedding, blocks = (sum(size for name, size in sizes.items() if name.startswith(of)) for of in ("embedding", "blocks"))
    layer = (sum(sizes.values()) - embedding - blocks) // c.n_layers
    at_once = blocks // n_blocks if n_blocks and keep == "none" else blocks
    layers = c.n_layers if keep == "all" else 3  # one runs, one is on its way, one is being let go
    return 2 * embedding + at_once + layers * layer, embedding + blocks + 2 * layer


def matrix_params(c: ZambaConfig) -> int:
    """Parameters of the two-dimensional matrices in layers and blocks: those that Muon takes."""
    layer = c.conv_dim * (c.d_conv + 1) + c.d_model
    if c.family == "zamba2":
        layer += 3 * c.n_ssm_heads + c.d_inner
    else:
        layer += c.d_inner * (2 * c.dt_rank + 2 * c.d_state + c.d_state + 2)
    blocks = c.n_blocks * (c.d_attn + c.d_model) if c.n_calls else 0
    return c.n_params() - c.vocab_size * c.d_model - c.d_model - c.n_layers * layer - blocks


def activations(c: ZambaConfig, tokens: int, recompute: str, item: int) -> int:
    """Bytes kept for the backward pass of ``tokens`` tokens at once, and beside them either the logits at its beginning or the
    part that is recomputed in it."""
    d, mixers, blocks = c.d_model, c.n_layers * mixer_numbers(c), c.n_calls * block_numbers(c)
    kept, again = {
        "none": (mixers + blocks, 0),
        "mixers": (blocks, mixer_numbers(c)),
        "blocks": (mixers + c.n_calls * d, block_numbers(c)),
        "layers": (0, mixer_numbers(c) + block_numbers(c)),
    }[recompute]
    ends = min(tokens, XENT_TOKENS) * c.vocab_size * item + 4 * c.vocab_size * d  # logits, the head's gradient
    stream = c.n_layers * d + 4 * d  # into every layer; the embedding, what the head reads and their gradients
    return item * tokens * (stream + kept) + max(ends, int(AGAIN * item * tokens * again))


def mixer_numbers(c: ZambaConfig) -> int:
    """Numbers a token that one mixer keeps: its normed input, what the input projection gave, the convolution's and the scan's
    results, the gated norm's, states (float32) here and there."""
    inner, states = c.d_inner, 2 * c.d_inner * c.d_state // STATE_TOKENS
    if c.family == "zamba2":
        return c.d_model + (inner + c.conv_dim + c.n_ssm_heads) + c.conv_dim + 2 * inner + states
    return c.d_model + 2 * inner + inner + c.dt_rank + 2 * c.d_state + 2 * inner + inner + states


def block_numbers(c: ZambaConfig) -> int:
    """Numbers a token that one call of a shared block keeps: its input beside the embedding, normed; q, k, v; attention's result;
    the MLP and what is around it."""
    adapters = c.adapter_rank * (1 + 3 * c.attention_adapters)
    return 2 * c.d_attn + 4 * c.n_heads * c.head_dim + 5 * c.d_model + 3 * c.d_ff + adapters


@dataclass(frozen=True)
class Fit:
    """A way to split a step, and whether it fits."""

    micro: int
    recompute: str
    total: int
    fits: bool


def fits(c: ZambaConfig, *, row: int, most: int, device_bytes: int, **how) -> list[Fit]:
    """Every division of a step's ``most`` rows of a device into equal parts, with each kind of recomputation. ``how``: what else
    ``memory`` asks for."""
    found = []
    for recompute in RECOMPUTE:
        for micro in (n for n in range(1, most + 1) if most % n == 0):
            total = memory(c, row=row, micro=micro, recompute=recompute, **how).total
            found.append(Fit(micro, recompute, total, total <= SPARE * device_bytes))
    return found


def choose(c: ZambaConfig, *, row: int, most: int, micro: int, recompute: str, device_bytes: int, **how) -> int:
    """Rows at once: ``micro`` as given or, for 0, the most that fit. ZambaError with what would fit when it does not."""
    if recompute not in RECOMPUTE:
        raise ZambaError(f"batch.recompute is {recompute!r}, expected one of {', '.join(RECOMPUTE)}")
    every = fits(c, row=row, most=most, device_bytes=device_bytes, **how)
    if micro and most % micro:
        raise ZambaError(f"batch.micro is {micro}, but a device's {most} rows of a step do not divide by it")
    wanted = [one for one in every if one.recompute == recompute and (not micro or one.micro == micro)]
    good = [one for one in wanted if one.fits]
    if good:
        return max(one.micro for one in good)
    least = min(wanted, key=lambda one: one.total)
    raise ZambaError(
        f"{least.micro} row{'s' * (least.micro > 1)} of {row} tokens with recompute={recompute} need about {gib(least.total)}, "
        f"of {gib(device_bytes)} there are; {_advice(every, row)}"
    )


def _advice(every: list[Fit], row: int) -> str:
    good = [one for one in every if one.fits]
    if not good:
        return "nothing fits: take a smaller shape, shorter rows (batch.row), or spread the model over several devices"
    best = max(good, key=lambda one: one.micro)
    return f"what fits: --set batch.micro={best.micro} --set batch.recompute={best.recompute} ({gib(best.total)})"


def gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
