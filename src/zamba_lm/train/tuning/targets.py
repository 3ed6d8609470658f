"""Which projections a low-rank adapter may sit on: presets for PEFT's ``target_modules``, as data.

Every preset is a regular expression that PEFT matches against whole module names, so it works on ``zamba_lm.hf`` models and on a
bare ``Zamba`` alike, in both families. Whatever it names is trained with true gradients: the model calls its projections through
one door (``model/parts.py``) and never reads past an adapter.
"""

import re
from typing import TYPE_CHECKING

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest

if TYPE_CHECKING:  # names alone need no torch
    from torch import nn

_BLOCK, _LAYER = r"(.*\.)?blocks\.\d+\.", r"(.*\.)?layers\.\d+\."

TARGETS = {
    "mixers": rf"{_LAYER}mixer\.(in_proj|out_proj)",  # the Mamba layers' projections
    "attention": rf"{_BLOCK}(qkv|o)",  # of the shared blocks: one pair of factors learns from all calls
    "mlp": rf"{_BLOCK}(gate_up|down)",
    "shared": rf"{_BLOCK}(qkv|o|gate_up|down)",
    "links": rf"{_LAYER}link",  # what brings a call's result into its layer: one a call
    "adapters": rf"{_LAYER}adapters\.\w+\.[AB]",  # the model's own low-rank corrections, which tell the calls apart
    "all": rf"{_LAYER}mixer\.(in_proj|out_proj)|{_BLOCK}(qkv|o|gate_up|down)|{_LAYER}link|{_LAYER}adapters\.\w+\.[AB]",
}
"""``LoraConfig(target_modules=TARGETS["all"])``"""

STOCK_TARGETS = {
    "mixers": r".*\.in_proj",  # out_proj is left out on purpose: the stock fused training path reads its weight past an adapter
    "attention": r".*\.self_attn\.[qkvo]_proj",
    "mlp": r".*\.feed_forward\.(gate_proj|up_proj|gate_up_proj|down_proj)",
    "links": r".*\.linear",
}
"""The same for transformers' own ``ZambaForCausalLM`` and ``Zamba2ForCausalLM``, as far as gradients reach there."""


def pattern(targets: str) -> str:
    """The regular expression of a preset, of several joined by "+", or ``targets`` itself where it is a pattern (has a "\\" or
    ".*"). Raises ZambaError for an unknown name."""
    if "\\" in targets or ".*" in targets:
        return targets
    names = [name.strip() for name in targets.split("+")]
    for name in names:
        if name not in TARGETS:
            raise ZambaError(
                f"unknown targets {name!r}{nearest(name, TARGETS)}; expected one of {', '.join(TARGETS)}, or a pattern"
            )
    return "|".join(TARGETS[name] for name in names)


def matched(model: "nn.Module", targets: str) -> list[str]:
    """Names of the projections of ``model`` that ``targets`` means; ZambaError when there are none or the pattern is broken."""
    from torch import nn

    try:
        wanted = re.compile(pattern(targets))
    except re.error as error:
        raise ZambaError(f"targets {targets!r} is no regular expression: {error}") from error
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = [name for name in linear if wanted.fullmatch(name)]
    if not names:
        has = ", ".join(name for name in TARGETS if any(re.fullmatch(TARGETS[name], one) for one in linear))
        raise ZambaError(f"targets {targets!r} match no projection of this model; presets that do: {has or 'none'}")
    return names
