"""The classes by family, under the names that transformers has for them, so that config.json says the same of either."""

from transformers import GenerationMixin, PretrainedConfig
from transformers import Zamba2Config as HfZamba2Config
from transformers import ZambaConfig as HfZambaConfig

from zamba_lm.errors import ZambaError
from zamba_lm.hf.base import ZambaPreTrainedModel
from zamba_lm.hf.config import to_hf
from zamba_lm.hf.models import BareZamba, CausalZamba, ClassifyingZamba
from zamba_lm.hf.tokenizer import register_tokenizer
from zamba_lm.model.zamba import Zamba


class ZambaModel(BareZamba):
    """Zamba without a head."""

    config_class = HfZambaConfig


class Zamba2Model(BareZamba):
    """Zamba2 without a head."""

    config_class = HfZamba2Config


class ZambaForCausalLM(CausalZamba, GenerationMixin):  # named again: tools look for it among a class's own bases
    """Zamba that predicts tokens."""

    config_class = HfZambaConfig


class Zamba2ForCausalLM(CausalZamba, GenerationMixin):
    """Zamba2 that predicts tokens."""

    config_class = HfZamba2Config


class ZambaForSequenceClassification(ClassifyingZamba):
    """Zamba that classifies texts."""

    config_class = HfZambaConfig


class Zamba2ForSequenceClassification(ClassifyingZamba):
    """Zamba2 that classifies texts."""

    config_class = HfZamba2Config


FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, type[ZambaPreTrainedModel]]]] = {
    "zamba": (
        HfZambaConfig,
        {"bare": ZambaModel, "causal": ZambaForCausalLM, "classification": ZambaForSequenceClassification},
    ),
    "zamba2": (
        HfZamba2Config,
        {"bare": Zamba2Model, "causal": Zamba2ForCausalLM, "classification": Zamba2ForSequenceClassification},
    ),
}


def wrap(zamba: Zamba, **settings) -> CausalZamba:
    """transformers' face around a model there is, sharing its parameters. ``settings``: attributes of transformers' config.

    ZambaError for packed weights, which can neither be trained nor saved as they are, and for a shape transformers has not.
    """
    if any(not one.is_floating_point() for one in zamba.parameters()):
        raise ZambaError("this model's weights are packed for inference (model/pack.py); wrap it before, or load it again")
    config = to_hf(zamba.config, dtype=zamba.dtype, **settings)
    return FAMILIES[zamba.config.family][1]["causal"](config, zamba=zamba)  # type: ignore[return-value]


def register() -> None:
    """Have transformers' Auto classes give our models for both families from now on. Calling it again changes nothing."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    autos = {"bare": AutoModel, "causal": AutoModelForCausalLM, "classification": AutoModelForSequenceClassification}
    for config, classes in FAMILIES.values():
        for kind, auto in autos.items():
            auto.register(config, classes[kind], exist_ok=True)
    register_tokenizer({model_type: config for model_type, (config, _) in FAMILIES.items()})
