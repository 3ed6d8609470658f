"""Between our config and transformers' two. Theirs stay what users of transformers hold; ours is what a model is built from."""

from typing import Any

from transformers import PretrainedConfig
from transformers import Zamba2Config as HfZamba2Config
from transformers import ZambaConfig as HfZambaConfig

from zamba_lm.errors import ZambaError
from zamba_lm.model import config_keys as keys
from zamba_lm.model.config import ZambaConfig

CONFIGS: dict[str, type[PretrainedConfig]] = {"zamba": HfZambaConfig, "zamba2": HfZamba2Config}
_READ = {
    key
    for table in (keys.WHOLES.values(), keys.NUMBERS.values(), keys.TOKENS.values(), keys.FIXED, keys.READ, keys.RENAMED["hf"])
    for key in table
}


def to_hf(config: ZambaConfig, **settings: Any) -> PretrainedConfig:
    """transformers' config of the same model; ``settings``: more of its attributes. ZambaError for a Zamba that it cannot say."""
    return CONFIGS[config.family](**config.to_hf() | settings)


def from_hf(config: PretrainedConfig) -> ZambaConfig:
    """Our config of the same model. Attributes that say nothing about the model's numbers are passed over, as are control tokens
    outside of the vocabulary.

    ZambaError for a config of another family, and for a model that we have not (an untied head, other activations).
    """
    raw = config.to_dict()
    if raw.get("model_type") not in CONFIGS:
        raise ZambaError(f"the config is one of {raw.get('model_type')!r}, expected transformers' ZambaConfig or Zamba2Config")
    raw = {key: value for key, value in raw.items() if key in _READ}
    if raw.get("dtype") is None:
        raw.pop("dtype", None)
    return ZambaConfig.from_hf(raw | {key: _inside(raw.get(key), raw["vocab_size"]) for key in keys.TOKENS.values()})


def _inside(token: Any, size: int) -> Any:
    """A control token, or a list of them, without those outside of a vocabulary of ``size``."""
    if isinstance(token, list | tuple):
        return [one for one in token if one is None or one < size] or None
    return None if token is None or token >= size else token
