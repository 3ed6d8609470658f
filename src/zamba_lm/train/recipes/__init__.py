"""Recipes: frozen configs with documented fields, and ``run(config)`` for each. No torch is imported before one runs."""

from importlib import import_module
from types import ModuleType

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest

# name: (module, one sentence). A module has ``Config`` (a frozen dataclass on ``base.Recipe``), ``PRESETS`` (name: config),
# ``run(config, *, resume)`` and ``plan(config)``, text about the memory.
RECIPES = {
    "pretrain": ("pretrain", "Train a model from random weights on a mixture of text."),
    "anneal": ("anneal", "Go on with a pre-trained model on better data, the learning rate re-warmed and falling fast."),
    "long-context": ("long_context", "Double a model's context step by step."),
    "sft": ("sft", "Teach a model by example chats, of which only the assistant's turns count."),
    "dpo": ("dpo", "Teach a model which of two answers is better."),
    "lora-sft": ("lora_sft", "Teach low-rank adapters by example chats; the model below them stays as it is."),
    "qlora-sft": ("qlora_sft", "As lora-sft, with the model below the adapters in four bits."),
    "lora-dpo": ("lora_dpo", "Teach low-rank adapters which of two answers is better."),
}


def recipe(name: str) -> ModuleType:
    """The module of a recipe. ZambaError with the nearest name for one that is not there."""
    if name not in RECIPES:
        raise ZambaError(f"unknown recipe {name!r}{nearest(name, RECIPES)}, expected one of {', '.join(RECIPES)}")
    return import_module(f"zamba_lm.train.recipes.{RECIPES[name][0]}")
