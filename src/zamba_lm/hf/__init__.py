"""Our models behind transformers' face: ``register`` puts them behind its Auto classes, ``wrap`` around a model there is."""

from zamba_lm.hf.cache import ZambaCache
from zamba_lm.hf.families import (
    Zamba2ForCausalLM,
    Zamba2ForSequenceClassification,
    Zamba2Model,
    ZambaForCausalLM,
    ZambaForSequenceClassification,
    ZambaModel,
    register,
    wrap,
)

__all__ = [
    "Zamba2ForCausalLM",
    "Zamba2ForSequenceClassification",
    "Zamba2Model",
    "ZambaCache",
    "ZambaForCausalLM",
    "ZambaForSequenceClassification",
    "ZambaModel",
    "register",
    "wrap",
]
