"""What our models behind transformers' face share, and what tools ask a PreTrainedModel for."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from zamba_lm.errors import ZambaError
from zamba_lm.hf.config import from_hf
from zamba_lm.hf.load import Loading
from zamba_lm.hf.reading import Reading
from zamba_lm.hf.save import Saving
from zamba_lm.model.zamba import Zamba


class ZambaPreTrainedModel(Reading, Loading, Saving, PreTrainedModel):
    """Our ``Zamba`` as a PreTrainedModel: ``self.zamba`` is the model, everything here is manners.

    A batch may be padded on either side (``attention_mask``), or hold several sequences a row (``lengths``, ``position_ids``
    that start anew, or ``cu_seq_lens_q``); either way the model reads packed sequences, which never see each other.
    """

    base_model_prefix = "model"  # the name in files; see ``base_model``
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer", "SharedBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig, *, zamba: Zamba | None = None):
        super().__init__(config)
        self.zamba = zamba or Zamba(from_hf(config))
        self.gradient_checkpointing = False
        self._filled = zamba is not None

    # what tools ask for

    def get_input_embeddings(self) -> nn.Embedding:
        return self.zamba.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Another embedding of the same width, maybe of another vocabulary. Control tokens outside of it are none any more."""
        self.zamba.embedding = value
        tokens = _tokens(self.zamba, len(value.weight))
        self.zamba.config = replace(self.zamba.config, vocab_size=len(value.weight), **tokens)
        for name, token in tokens.items():
            setattr(self.config, name.replace("_id", "_token_id"), list(token) if isinstance(token, tuple) else token)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Module | None:
        return None

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to tie without a head."""

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True) -> nn.Embedding:
        old = self.get_input_embeddings()
        new = self._get_resized_embeddings(old, new_num_tokens, pad_to_multiple_of, mean_resizing)
        if new is not old or new.num_embeddings != self.zamba.config.vocab_size:
            new.requires_grad_(old.weight.requires_grad)
            self.set_input_embeddings(new)
        return self.get_input_embeddings()

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, every_n_layers=1) -> None:
        """Recompute every n-th layer in backward passes, see ``Zamba.recompute``."""
        if getattr(gradient_checkpointing_func, "func", checkpoint) is not checkpoint:
            raise ZambaError("recomputed layers keep their inputs on the device; pass offload=False")
        self.gradient_checkpointing = enable
        self.zamba.recompute(*(("layers",) if enable else ()), layers=range(0, len(self.zamba.layers), every_n_layers))

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published initialisation, from torch's generator; a model that was given keeps its weights."""
        if not self._filled and self.zamba.device.type != "meta":
            self.zamba.init_weights(int(torch.randint(2**31, ())))
            self.init_rest()
        self.tie_weights()

    def init_rest(self) -> None:
        """Initialise what a subclass has beside the model."""

    @property
    def base_model(self) -> "Backbone | Any":
        """What is called for normed hidden states (B, T, D) as ``last_hidden_state``, as transformers' base models are."""
        return Backbone(self)


class Backbone:
    """A model without its head, sharing everything with it."""

    def __init__(self, model: ZambaPreTrainedModel):
        self._model = model

    def __call__(self, input_ids=None, attention_mask=None, **kwargs: Any):
        return self._model.encode(input_ids, attention_mask, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model.zamba, name)


def _tokens(zamba: Zamba, size: int) -> dict[str, Any]:
    """Control tokens, None for those outside of a vocabulary of ``size``."""
    c = zamba.config
    kept = {name: one if one is not None and one < size else None for name, one in (("pad_id", c.pad_id), ("bos_id", c.bos_id))}
    eos = tuple(one for one in c.eos_ids if one < size)
    return kept | {"eos_id": c.eos_id if eos == c.eos_ids else eos or None}
