"""What the published files call their tensors: tables, read by ``names.py``.

Three styles beside our own: ``hf`` (transformers, both families: the one we write by default), ``fork`` (the older transformers
fork of the models' authors) and ``native`` (the authors' own code). Sources: transformers 5.23 `models/zamba` and
`models/zamba2`, github.com/Zyphra/transformers_zamba2 and github.com/Zyphra/Zamba2.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """Names of one kind of file. Templates take {layer}, {call} and {block}; those of adapters {call} and {end} (A or B).

    Where ``shared`` mentions {layer}, every caller of a shared block has a name for it: the first caller's is written, the
    others are tied copies. ``block`` gives each of our names the tensors that hold its rows, in order.
    """

    embedding: tuple[str, ...]  # with its tied copies
    norm: str
    plain: str  # prefix of a plain layer
    hybrid: str  # prefix of the norm and the mixer of a layer that calls a shared block
    layer_norm: str
    mixer: Mapping[str, str]
    link: str
    shared: str  # prefix of a shared block
    block: Mapping[str, tuple[str, ...]]
    adapters: Mapping[str, str]  # below the prefix of the shared block
    adapter_ends: tuple[str, str]  # what A and B are called
    woven_qkv: bool = False  # q, k and v in one tensor, head by head
    ignored: tuple[str, ...] = ()  # patterns of tensors that carry nothing


def _under(prefix: str, names: dict[str, str]) -> dict[str, str]:
    return {ours: prefix + theirs for ours, theirs in names.items()}


_MIXER = {
    "in_proj.weight": "in_proj.weight",
    "conv_weight": "conv1d.weight",
    "conv_bias": "conv1d.bias",
    "A_log": "A_log",
    "D": "D",
    "out_proj.weight": "out_proj.weight",
}
_MAMBA1 = _MIXER | {"x_proj": "x_proj_weight", "dt_proj": "dt_proj_weight", "dt_bias": "dt_proj_bias"}
_MAMBA2 = _MIXER | {"dt_bias": "dt_bias", "norm_weight": "norm.weight"}

_ATTENTION = {
    "norm_in.weight": ("input_layernorm.weight",),
    "qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "o.weight": ("self_attn.o_proj.weight",),
    "norm_mlp.weight": ("pre_ff_layernorm.weight",),
}
_MLP_ZAMBA = {
    "gate_up.weight": ("feed_forward.gate_proj.weight", "feed_forward.up_proj.weight"),
    "down.weight": ("feed_forward.down_proj.weight",),
}
_MLP_ZAMBA2 = {
    "gate_up.weight": ("feed_forward.gate_up_proj.weight",),
    "down.weight": ("feed_forward.down_proj.weight",),
}
_MLP_FORK = {
    "gate_up.weight": ("feed_forward.linear_fc1.weight",),
    "down.weight": ("feed_forward.linear_fc2.weight",),
}
_BLOCK_NATIVE = {
    "norm_in.weight": ("sa.norm.weight",),
    "qkv.weight": ("sa.mixer.linear_qkv.weight",),
    "o.weight": ("sa.mixer.linear_proj.weight",),
    "norm_mlp.weight": ("mlp.norm.weight",),
    "gate_up.weight": ("mlp.mixer.linear_fc1.weight",),
    "down.weight": ("mlp.mixer.linear_fc2.weight",),
}
_ADAPTERS_HF = {
    "gate_up": "feed_forward.gate_up_proj_adapter_list.{call}.{end}.weight",
    "q": "self_attn.linear_q_adapter_list.{call}.{end}.weight",
    "k": "self_attn.linear_k_adapter_list.{call}.{end}.weight",
    "v": "self_attn.linear_v_adapter_list.{call}.{end}.weight",
}
_ADAPTERS_FORK = {
    "gate_up": "feed_forward.linear_fc1_lora_{end}_list.{call}.weight",
    "q": "self_attn.linear_q_lora_{end}_list.{call}.weight",
    "k": "self_attn.linear_k_lora_{end}_list.{call}.weight",
    "v": "self_attn.linear_v_lora_{end}_list.{call}.weight",
}
_ADAPTERS_NATIVE = {
    "gate_up": "mlp.mixer.linear_fc1_lora_{end}_list.{call}.weight",
    "q": "sa.mixer.linear_q_lora_{end}_list.{call}.weight",
    "k": "sa.mixer.linear_k_lora_{end}_list.{call}.weight",
    "v": "sa.mixer.linear_v_lora_{end}_list.{call}.weight",
}
_ROTARY = r".*rotary(_pos)?_emb\.inv_freq"  # the angles follow from the config

_ZAMBA_HF = Style(
    embedding=("model.embed_tokens.weight", "lm_head.weight"),
    norm="model.final_layernorm.weight",
    plain="model.layers.{layer}.",
    hybrid="model.layers.{layer}.mamba_decoder.",
    layer_norm="input_layernorm.weight",
    mixer=_under("mamba.", _MAMBA1),
    link="model.layers.{layer}.linear.weight",
    shared="model.layers.{layer}.shared_transf.",
    block=_ATTENTION | _MLP_ZAMBA,
    adapters={},
    adapter_ends=("0", "1"),
    ignored=(_ROTARY,),
)
_ZAMBA2_HF = Style(
    embedding=("model.embed_tokens.weight", "lm_head.weight"),
    norm="model.final_layernorm.weight",
    plain="model.layers.{layer}.",
    hybrid="model.layers.{layer}.mamba_decoder.",
    layer_norm="input_layernorm.weight",
    mixer=_under("mamba.", _MAMBA2),
    link="model.layers.{layer}.linear.weight",
    shared="model.layers.{layer}.shared_transformer.",
    block=_ATTENTION | _MLP_ZAMBA2,
    adapters=_ADAPTERS_HF,
    adapter_ends=("0", "1"),
    ignored=(_ROTARY,),
)
_ZAMBA2_FORK = Style(
    embedding=("model.embed_tokens.weight", "lm_head.weight"),
    norm="model.final_layernorm.weight",
    plain="model.mamba_layers.{layer}.",
    hybrid="model.mamba_layers.{layer}.",
    layer_norm="input_layernorm.weight",
    mixer=_under("mamba.", _MAMBA2),
    link="model.linear_layers.{call}.weight",
    shared="model.blocks.{block}.",
    block=_ATTENTION | _MLP_FORK,
    adapters=_ADAPTERS_FORK,
    adapter_ends=("A", "B"),
    ignored=(_ROTARY,),
)
_ZAMBA2_NATIVE = Style(
    embedding=("embedding.weight", "embedding.word_embeddings.weight", "output_layer.weight"),
    norm="decoder.final_layernorm.weight",
    plain="decoder.layers.{layer}.",
    hybrid="decoder.layers.{layer}.",
    layer_norm="norm.weight",
    mixer=_under("mixer.", _MAMBA2 | {"in_proj.weight": "in_proj.0.weight"}),
    link="decoder.block_map.{layer}.weight",
    shared="decoder.blocks.{block}.",
    block=_BLOCK_NATIVE,
    adapters=_ADAPTERS_NATIVE,
    adapter_ends=("A", "B"),
    woven_qkv=True,
    ignored=(_ROTARY, r".*_extra_state", r"embedding\.position_embeddings\.weight"),
)

STYLES: dict[tuple[str, str], Style] = {
    ("zamba", "hf"): _ZAMBA_HF,
    ("zamba2", "hf"): _ZAMBA2_HF,
    ("zamba2", "fork"): _ZAMBA2_FORK,
    ("zamba2", "native"): _ZAMBA2_NATIVE,
}

# the start of some tensor's name tells the style of its file
_MARKS = {"decoder.layers.": "native", "model.mamba_layers.": "fork", "model.layers.": "hf", "layers.": "ours"}


def style_of(names: Iterable[str]) -> str | None:
    """Style of a file by the names in it, None when none is known."""
    names = tuple(names)
    return next((style for mark, style in _MARKS.items() if any(name.startswith(mark) for name in names)), None)
