"""Every parameter of our model with its shape, and the tensors of a file that hold it.

The names in the files stand in ``styles.py``. All differences of layout are said by ``Piece``: one tensor of a file is a range of
rows of one of our parameters (q, k and v of qkv), or the same rows in another order (x and z taking turns, q, k, v head by head).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.schedule import LayerPlan, schedule
from zamba_lm.model.styles import STYLES, Style

Shape = tuple[int, ...]


# our side


def parameter_shapes(config: ZambaConfig) -> dict[str, Shape]:
    """Every parameter of ``Zamba(config)`` with its shape, in order of use."""
    shapes: dict[str, Shape] = {"embedding.weight": (config.vocab_size, config.d_model)}
    for plan in schedule(config):
        shapes |= _prefixed(f"layers.{plan.layer}.", _layer_shapes(config, plan))
    for block in range(config.n_blocks if config.hybrid_layers else 0):
        shapes |= _prefixed(f"blocks.{block}.", _block_shapes(config))
    return shapes | {"norm.weight": (config.d_model,)}


def _prefixed(prefix: str, shapes: dict[str, Shape]) -> dict[str, Shape]:
    return {prefix + name: shape for name, shape in shapes.items()}


def _layer_shapes(c: ZambaConfig, plan: LayerPlan) -> dict[str, Shape]:
    mixer = _mamba2_shapes(c) if c.family == "zamba2" else _mamba1_shapes(c)
    shapes = {"norm.weight": (c.d_model,)} | _prefixed("mixer.", mixer)
    if plan.hybrid:
        shapes |= {"link.weight": (c.d_model, c.d_model)} | _prefixed("adapters.", adapter_shapes(c))
    return shapes


def _mamba2_shapes(c: ZambaConfig) -> dict[str, Shape]:
    heads = (c.n_ssm_heads,)
    return {
        "in_proj.weight": (c.d_inner + c.conv_dim + c.n_ssm_heads, c.d_model),  # rows z, x, B, C, dt
        "conv_weight": (c.conv_dim, c.d_conv),
        "conv_bias": (c.conv_dim,),
        "dt_bias": heads,
        "A_log": heads,
        "D": heads,
        "norm_weight": (c.d_inner,),
        "out_proj.weight": (c.d_model, c.d_inner),
    }


def _mamba1_shapes(c: ZambaConfig) -> dict[str, Shape]:
    heads, size, rank = c.n_ssm_heads, c.ssm_head_dim, c.dt_rank
    return {
        "in_proj.weight": (2 * c.d_inner, c.d_model),  # rows x, z
        "conv_weight": (c.d_inner, c.d_conv),
        "conv_bias": (c.d_inner,),
        "x_proj": (heads, rank + 2 * c.d_state, size),
        "dt_proj": (heads, size, rank),
        "dt_bias": (heads, size),
        "A_log": (heads, size, c.d_state),
        "D": (heads, size),
        "out_proj.weight": (c.d_model, c.d_inner),
    }


def _block_shapes(c: ZambaConfig) -> dict[str, Shape]:
    return {
        "norm_in.weight": (c.d_attn,),
        "qkv.weight": (3 * c.d_attn, c.d_attn),  # rows q, k, v
        "o.weight": (c.d_model, c.d_attn),
        "norm_mlp.weight": (c.d_model,),
        "gate_up.weight": (2 * c.d_ff, c.d_model),  # rows gate, up
        "down.weight": (c.d_model, c.d_ff),
    }


def adapter_shapes(c: ZambaConfig) -> dict[str, Shape]:
    """The adapters of one call: A (rank, in) and B (out, rank) for gate_up and, on some models, q, k and v."""
    if not c.adapter_rank:
        return {}
    ends = {"gate_up": (c.d_model, 2 * c.d_ff)}
    if c.attention_adapters:
        ends |= dict.fromkeys("qkv", (c.d_attn, c.d_attn))
    shapes = {}
    for part, (inner, outer) in ends.items():
        shapes |= {f"{part}.A.weight": (c.adapter_rank, inner), f"{part}.B.weight": (outer, c.adapter_rank)}
    return shapes


# the files' side


@dataclass(frozen=True)
class Piece:
    """One tensor of a file: which of our parameters it is part of, and how.

    ``names`` are its names in the file: the one to write first, then the names of tied copies. ``rows`` is the range of our
    rows it fills (None: all). ``weave=(parts, groups)`` says that the file takes turns: our rows are ``parts`` stretches of
    ``groups`` equal runs each, and the file goes through the runs, at each through the parts.
    """

    target: str
    names: tuple[str, ...]
    shape: Shape
    rows: tuple[int, int] | None = None
    weave: tuple[int, int] | None = None

    def window(self, parameter: Tensor) -> Tensor:
        """View of our parameter in the order of the file: as many elements as ``shape``, sharing memory."""
        if self.rows:
            return parameter[self.rows[0] : self.rows[1]]
        if self.weave:
            return parameter.unflatten(0, (*self.weave, -1)).transpose(0, 1)
        return parameter


def pieces(config: ZambaConfig, style: str) -> list[Piece]:
    """Every tensor that a file of this style must hold for this config. ZambaError for a style the family never had."""
    shapes = parameter_shapes(config)
    if style == "ours":
        return [Piece(name, (name,), shape) for name, shape in shapes.items()]
    names = _style(config, style)
    found = [Piece("embedding.weight", names.embedding, shapes["embedding.weight"])]
    for plan in schedule(config):
        found += _layer_pieces(config, names, plan)
    for block in range(config.n_blocks if config.hybrid_layers else 0):
        found += _block_pieces(config, names, block)
    return [*found, Piece("norm.weight", (names.norm,), shapes["norm.weight"])]


def _style(config: ZambaConfig, style: str) -> Style:
    known = [name for family, name in STYLES if family == config.family]
    if style not in known:
        raise ZambaError(
            f"there is no {style!r} style for {config.family} weights, expected one of {', '.join([*known, 'ours'])}"
        )
    return STYLES[config.family, style]


def _layer_pieces(c: ZambaConfig, names: Style, plan: LayerPlan) -> Iterator[Piece]:
    ours, theirs = f"layers.{plan.layer}.", (names.hybrid if plan.hybrid else names.plain).format(layer=plan.layer)
    shapes = _layer_shapes(c, plan)
    yield Piece(ours + "norm.weight", (theirs + names.layer_norm,), shapes["norm.weight"])
    for name, stored in names.mixer.items():
        shape = shapes[f"mixer.{name}"]
        if name == "conv_weight":
            shape = (shape[0], 1, shape[1])  # one input channel a filter, as torch's Conv1d keeps it
        weave = (2, c.d_inner) if c.family == "zamba" and name == "in_proj.weight" else None
        yield Piece(f"{ours}mixer.{name}", (theirs + stored,), shape, weave=weave)
    if plan.hybrid:
        yield Piece(ours + "link.weight", (names.link.format(layer=plan.layer, call=plan.call),), shapes["link.weight"])


def _block_pieces(c: ZambaConfig, names: Style, block: int) -> Iterator[Piece]:
    callers = [plan for plan in schedule(c) if plan.block == block]
    prefixes = tuple(dict.fromkeys(names.shared.format(layer=plan.layer, block=block) for plan in callers))
    shapes = _block_shapes(c)
    for name, stored in names.block.items():
        target, (rows, *columns) = f"blocks.{block}.{name}", shapes[name]
        weave = (3, c.n_heads) if names.woven_qkv and name == "qkv.weight" else None
        size = rows // len(stored)
        for part, tensor in enumerate(stored):
            span = (part * size, (part + 1) * size) if len(stored) > 1 else None
            yield Piece(target, tuple(prefix + tensor for prefix in prefixes), (size, *columns), rows=span, weave=weave)
    for plan in callers:
        yield from _adapter_pieces(c, names, plan, prefixes)


def _adapter_pieces(c: ZambaConfig, names: Style, plan: LayerPlan, prefixes: tuple[str, ...]) -> Iterator[Piece]:
    for name, shape in adapter_shapes(c).items():
        part, end, _ = name.split(".")
        if part not in names.adapters:
            raise ZambaError(f"files of {c.family} models have no place for adapters, adapter_rank is {c.adapter_rank}")
        stored = names.adapters[part].format(call=plan.call, end=names.adapter_ends["AB".index(end)])
        yield Piece(f"layers.{plan.layer}.adapters.{name}", tuple(prefix + stored for prefix in prefixes), shape)


def spare_names(config: ZambaConfig, style: str) -> set[str]:
    """Names of adapters that no call uses.

    The authors' code gives every shared block an adapter for every call, of which each block uses every ``n_blocks``-th.
    """
    if style == "ours":
        return set()
    names, plans = _style(config, style), schedule(config)
    calls = [plan for plan in plans if plan.hybrid]
    return {
        names.shared.format(layer=holder.layer, block=holder.block) + template.format(call=plan.call, end=end)
        for holder in calls
        for plan in calls
        if plan.block != holder.block
        for template in names.adapters.values()
        for end in names.adapter_ends
    }


def hollow_shapes(config: ZambaConfig, style: str) -> dict[str, Shape]:
    """Tensors without elements that transformers expects of a Zamba2 without adapters: its adapters of rank 0."""
    if style != "hf" or config.family != "zamba2" or config.adapter_rank:
        return {}
    names = _style(config, style)
    first = {block: config.hybrid_layers[block] for block in range(config.n_blocks)} if config.hybrid_layers else {}
    shapes: dict[str, Shape] = {}
    for plan in schedule(config):
        if plan.call is None or plan.block is None:
            continue
        stored = names.shared.format(layer=first[plan.block], block=plan.block) + names.adapters["gate_up"]
        shapes[stored.format(call=plan.call, end="0")] = (0, config.d_model)
        shapes[stored.format(call=plan.call, end="1")] = (2 * config.d_ff, 0)
    return shapes
