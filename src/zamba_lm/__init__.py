"""zamba-lm: Zamba and Zamba2 language models in plain PyTorch.

Names are imported when they are first used, so that ``import zamba_lm`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zamba_lm.engine.request import Completion, SamplingParams
    from zamba_lm.errors import ZambaError
    from zamba_lm.llm import LLM, load_tokenizer
    from zamba_lm.model.config import ZambaConfig
    from zamba_lm.model.load import load_model
    from zamba_lm.model.zamba import Zamba

_HOME = {
    "Completion": "zamba_lm.engine.request",
    "LLM": "zamba_lm.llm",
    "SamplingParams": "zamba_lm.engine.request",
    "Zamba": "zamba_lm.model.zamba",
    "ZambaConfig": "zamba_lm.model.config",
    "ZambaError": "zamba_lm.errors",
    "load_model": "zamba_lm.model.load",
    "load_tokenizer": "zamba_lm.llm",
}
__all__ = [
    "LLM",
    "Completion",
    "SamplingParams",
    "Zamba",
    "ZambaConfig",
    "ZambaError",
    "__version__",
    "load_model",
    "load_tokenizer",
]


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("zamba-lm")
    if name not in _HOME:
        raise AttributeError(f"module 'zamba_lm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
