"""What a Zamba is, in numbers: one frozen config for both families."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from zamba_lm.errors import ZambaError
from zamba_lm.model import sizes
from zamba_lm.model.config_read import from_dict
from zamba_lm.model.config_write import to_dict

FAMILIES = ("zamba", "zamba2")
COUNTS = (
    "vocab_size",
    "d_model",
    "n_layers",
    "n_blocks",
    "expand",
    "n_ssm_heads",
    "d_state",
    "n_groups",
    "d_conv",
    "n_heads",
    "d_ff",
)
MOST_LAYERS = 10_000  # more is a damaged file
LONG_CONTEXT_SCALE = 8  # theta' = theta * 8^(dim / (dim - 2)): the authors' long-context RoPE


@dataclass(frozen=True, kw_only=True)
class ZambaConfig:
    """Shape and hyper-parameters of a Zamba (Mamba-1 mixers) or Zamba2 (Mamba-2 mixers) model.

    Lengths count elements, ``dt_*`` are seconds of the continuous-time model, probabilities do not occur. Two fields stand for
    features: ``adapter_rank > 0`` means every call of a shared block has adapters, ``rope_theta > 0`` means attention rotates its
    queries and keys. Raises ZambaError for a shape that cannot be built.
    """

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    hybrid_layers: tuple[int, ...]  # layers that call a shared block, ascending
    n_blocks: int = 1  # distinct shared blocks, used in turn by call
    # mixer
    expand: int = 2
    n_ssm_heads: int
    d_state: int
    n_groups: int = 1
    d_conv: int = 4
    dt_rank: int = 0  # Mamba-1 only
    # shared block
    n_heads: int
    d_ff: int
    adapter_rank: int = 0
    attention_adapters: bool = False
    rope_theta: float = 0.0  # before the long-context rescaling
    long_context: bool = False
    max_positions: int = 4096
    # numbers
    norm_eps: float = 1e-5
    init_std: float = 0.02
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_limit: tuple[float, float] = (0.0, inf)
    # text
    pad_id: int | None = 0
    bos_id: int | None = 1
    eos_id: int | tuple[int, ...] | None = 2
    dtype: str = "bfloat16"

    def __post_init__(self):
        for problem in _problems(self):
            raise ZambaError(f"impossible {self.family} config: {problem}")

    # the config.json of checkpoints

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> "ZambaConfig":
        """Read a config.json: of transformers 4 or 5, of the authors' older fork or of their own code. ZambaError for any
        other.
        """
        return from_dict(raw, cls)

    def to_hf(self) -> dict[str, Any]:
        """The config.json of transformers 5; ``from_hf`` gives this config back. ZambaError for a Zamba that transformers has
        not.
        """
        return to_dict(self)

    # parameters, bytes and operations: see sizes.py

    n_params = sizes.n_params
    weights_read_per_token = sizes.weights_read_per_token
    block_params = sizes.block_params
    adapter_params = sizes.adapter_params
    mixer_params = sizes.mixer_params
    weight_bytes = sizes.weight_bytes
    kv_bytes_per_token = sizes.kv_bytes_per_token
    state_bytes = sizes.state_bytes
    conv_state_bytes = sizes.conv_state_bytes
    flops = sizes.flops

    # derived shapes

    @property
    def d_inner(self) -> int:
        """Width of the mixer: SSM heads times their size."""
        return self.expand * self.d_model

    @property
    def ssm_head_dim(self) -> int:
        return self.d_inner // self.n_ssm_heads

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: x alone (Mamba-1) or x, B and C (Mamba-2)."""
        return self.d_inner + (2 * self.n_groups * self.d_state if self.family == "zamba2" else 0)

    @property
    def d_attn(self) -> int:
        """Width of attention: the hidden state beside the embedding."""
        return 2 * self.d_model

    @property
    def head_dim(self) -> int:
        return self.d_attn // self.n_heads

    @property
    def attn_scale(self) -> float:
        return (self.head_dim / 2) ** -0.5

    @property
    def rope_base(self) -> float:
        """RoPE base in use, rescaled for long contexts as the authors' code does."""
        if not self.long_context:
            return self.rope_theta
        return self.rope_theta * LONG_CONTEXT_SCALE ** (self.head_dim / (self.head_dim - 2))

    @property
    def n_calls(self) -> int:
        """How often a shared block is called in one pass."""
        return len(self.hybrid_layers)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        if self.eos_id is None:
            return ()
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)


def _whole(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _wholes(x: object) -> bool:
    return isinstance(x, tuple) and all(map(_whole, x))


# what a value must be before it can be compared with anything
KINDS: tuple[tuple[Callable[[Any], bool], str, tuple[str, ...]], ...] = (
    (_whole, "a whole number", ("dt_rank", "adapter_rank", "max_positions")),
    (_number, "a number", ("rope_theta", "norm_eps", "init_std", "dt_min", "dt_max", "dt_floor")),
    (lambda x: isinstance(x, bool), "true or false", ("attention_adapters", "long_context")),
    (_wholes, "a list of whole numbers", ("hybrid_layers",)),
    (lambda x: isinstance(x, tuple) and len(x) == 2 and all(map(_number, x)), "two numbers, low and high", ("dt_limit",)),
    (lambda x: x is None or _whole(x), "a token id or nothing", ("pad_id", "bos_id")),
    (lambda x: x is None or _whole(x) or _wholes(x), "a token id, several, or nothing", ("eos_id",)),
)


def _problems(c: ZambaConfig):
    """Yield what makes a config impossible, in words."""
    if c.family not in FAMILIES:
        yield f"family {c.family!r}, expected one of {', '.join(FAMILIES)}"
    for name in COUNTS:
        if not isinstance(getattr(c, name), int) or isinstance(getattr(c, name), bool) or getattr(c, name) < 1:
            yield f"{name} is {getattr(c, name)!r}, expected a whole number of at least 1"
            return
    for fits, expected, names in KINDS:
        for name in names:
            if not fits(getattr(c, name)):
                yield f"{name} is {getattr(c, name)!r}, expected {expected}"
                return
    if c.n_layers > MOST_LAYERS:
        yield f"n_layers is {c.n_layers}, expected at most {MOST_LAYERS}"
        return
    if c.d_conv < 2:
        yield f"d_conv is {c.d_conv}, expected at least 2"
    for what, total, name, part in (
        ("the mixer width", c.d_inner, "n_ssm_heads", c.n_ssm_heads),
        ("the mixer width", c.d_inner, "n_groups", c.n_groups),
        ("n_ssm_heads", c.n_ssm_heads, "n_groups", c.n_groups),
        ("the attention width", c.d_attn, "n_heads", c.n_heads),
    ):
        if total % part:
            yield f"{what} {total} is not a multiple of {name} {part}"
    if list(c.hybrid_layers) != sorted(set(c.hybrid_layers)):
        yield f"hybrid_layers {c.hybrid_layers} must ascend without repeats"
    if c.hybrid_layers and not (0 <= c.hybrid_layers[0] and c.hybrid_layers[-1] < c.n_layers):
        yield f"hybrid_layers {c.hybrid_layers} must lie within the {c.n_layers} layers"
    if c.hybrid_layers and c.n_blocks > c.n_calls:
        yield f"{c.n_blocks} shared blocks but only {c.n_calls} layers call one"
    if c.family == "zamba" and c.dt_rank < 1:
        yield f"dt_rank is {c.dt_rank}, expected at least 1 for Mamba-1"
    if c.family == "zamba" and c.n_groups != 1:
        yield f"n_groups is {c.n_groups}, expected 1: Mamba-1 heads have their own B and C"
    if c.adapter_rank < 0 or (c.attention_adapters and not c.adapter_rank):
        yield f"adapter_rank is {c.adapter_rank} with attention_adapters={c.attention_adapters}"
    if c.rope_theta < 0 or not isfinite(c.rope_theta):
        yield f"rope_theta is {c.rope_theta}, expected 0 (no rotation) or a positive base"
    if (c.rope_theta or c.long_context) and (c.head_dim % 2 or c.head_dim < 4):
        yield f"head_dim is {c.head_dim}, RoPE needs an even size of at least 4"
    if c.long_context and not c.rope_theta:
        yield "long_context rescales RoPE, but rope_theta is 0"
    if c.max_positions < 1:
        yield f"max_positions is {c.max_positions}, expected at least 1"
    if not c.norm_eps > 0:
        yield f"norm_eps is {c.norm_eps}, expected a positive number"
    if not 0 <= c.init_std < inf:
        yield f"init_std is {c.init_std}, expected 0 or a positive number"
    if not 0 < c.dt_min <= c.dt_max < inf or not c.dt_floor > 0:
        yield f"dt_min, dt_max and dt_floor are {c.dt_min}, {c.dt_max}, {c.dt_floor}; needed: 0 < dt_min <= dt_max, 0 < dt_floor"
    if not 0 <= c.dt_limit[0] < c.dt_limit[1]:
        yield f"dt_limit is {c.dt_limit}, expected 0 <= low < high"
    if c.dtype not in ("float32", "bfloat16", "float16"):
        yield f"dtype is {c.dtype!r}, expected float32, bfloat16 or float16"
    for name in ("pad_id", "bos_id"):
        token = getattr(c, name)
        if token is not None and not 0 <= token < c.vocab_size:
            yield f"{name} is {token}, outside the vocabulary of {c.vocab_size}"
    for token in c.eos_ids:
        if not 0 <= token < c.vocab_size:
            yield f"eos_id {token} is outside the vocabulary of {c.vocab_size}"
