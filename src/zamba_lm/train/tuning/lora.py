"""Low-rank adapters: their settings, and how they get onto a model."""

from dataclasses import dataclass

from zamba_lm.errors import ZambaError
from zamba_lm.train.recipes.base import said
from zamba_lm.train.tuning.targets import TARGETS, matched, pattern


@dataclass(frozen=True, kw_only=True)
class Lora:
    """W x becomes W x + (alpha / rank) B A x with W frozen. ZambaError for settings that cannot be meant."""

    rank: int = said(16, "rows of A and columns of B")
    alpha: float = said(32.0, "strength: the correction is multiplied by alpha / rank")
    dropout: float = said(0.0, "share of the correction's inputs left out while training")
    targets: str = said(
        "all", f"projections: {', '.join(TARGETS)}; several joined by +; or a regular expression over module names"
    )

    def __post_init__(self):
        if self.rank < 1:
            raise ZambaError(f"lora.rank is {self.rank}, expected a whole number of at least 1")
        if not 0 <= self.dropout < 1:
            raise ZambaError(f"lora.dropout is {self.dropout}, expected at least 0 and below 1")
        pattern(self.targets)


def peft_config(model, lora: Lora):
    """The ``peft.LoraConfig`` of these settings for ``model``. ZambaError when they match none of its projections."""
    from peft import LoraConfig

    matched(model, lora.targets)
    return LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=pattern(lora.targets),
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
    )


def add_lora(model, lora: Lora):
    """A ``PeftModel`` around a ``zamba_lm.hf`` model, in which only the factors A and B are trained (float32)."""
    from peft import get_peft_model

    return get_peft_model(model, peft_config(model, lora))
