"""How a model's authors want it sampled: generation_config.json as SamplingParams."""

from collections.abc import Mapping
from typing import Any

from zamba_lm.engine.request import SamplingParams
from zamba_lm.errors import ZambaError

SAMPLED = ("temperature", "top_k", "top_p", "min_p")  # these mean nothing where do_sample is false
ALWAYS = ("repetition_penalty",)


def from_generation_config(content: Mapping[str, Any]) -> SamplingParams:
    """Sampling as the file says. Greedy unless ``do_sample`` is true; a sampling temperature not given is 1; what the file leaves
    out, or sets to null, is off. Raises ZambaError for a value out of range."""
    names = (*SAMPLED, *ALWAYS) if content.get("do_sample") else ALWAYS
    given = {name: content[name] for name in names if content.get(name) is not None}
    if content.get("do_sample"):
        given.setdefault("temperature", 1.0)
    if content.get("max_new_tokens") is not None:
        given["max_tokens"] = content["max_new_tokens"]
    try:
        return SamplingParams(**given)
    except ZambaError as error:
        raise ZambaError(f"generation_config.json: {error}") from error
