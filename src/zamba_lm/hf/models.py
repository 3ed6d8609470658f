"""The models themselves: the bare one, with the head that predicts tokens, with one that classifies texts."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple

from zamba_lm.errors import ZambaError
from zamba_lm.hf.base import ZambaPreTrainedModel
from zamba_lm.hf.cache import ZambaCache
from zamba_lm.hf.loss import loss, targets
from zamba_lm.hf.reading import Read
from zamba_lm.model.parts import Linear, project
from zamba_lm.model.zamba import Zamba

Ids = torch.Tensor | None
CACHES = (None, "dynamic", "dynamic_full")  # what generate may ask for by name: ours is each of them


class BareZamba(ZambaPreTrainedModel):
    """Hidden states, without a head."""

    def __init__(self, config: PretrainedConfig, *, zamba: Zamba | None = None):
        super().__init__(config, zamba=zamba)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Ids = None,
        position_ids: Ids = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        lengths: tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Normed hidden states (B, T, D) as ``last_hidden_state``; arguments as for the causal model."""
        return self.encode(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            lengths=lengths,
            **kwargs,
        )


class CausalZamba(ZambaPreTrainedModel, GenerationMixin):
    """Predicts the next token. The head's weight is the embedding's."""

    _tied_weights_keys = {"lm_head.weight": "zamba.embedding.weight"}
    accepts_loss_kwargs = True  # the loss is divided by num_items_in_batch

    def __init__(self, config: PretrainedConfig, *, zamba: Zamba | None = None):
        super().__init__(config, zamba=zamba)
        self.lm_head = _head(self.zamba)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Ids = None,
        position_ids: Ids = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: Ids = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        lengths: tuple[int, ...] | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) in the model's dtype, and with ``labels`` the loss.

        input_ids: (B, T) int64, or inputs_embeds: (B, T, D). attention_mask: (B, T), 0 for padding, on either side; with a cache
        (B, columns of the cache + T). ``lengths``: plain integers that say where sequences lie in rows laid end to end;
        position_ids (B, T) that begin anew, or ``cu_seq_lens_q``, say the same. labels: (B, T) int64, aligned with the input,
        -100 where nothing is to be predicted; the model shifts them by one within each sequence. ``shift_labels`` are shifted.
        The loss is a float32 scalar in nats: the sum divided by ``num_items_in_batch``, or by the number of labels.
        logits_to_keep: the last so many columns, or those of an index tensor; 0: all; None: all, or with labels none, so that
        logits are never held. Raises ZambaError for arguments that do not fit each other.
        """
        shift_labels = kwargs.pop("shift_labels", None)  # no parameter: Trainer would expect one of that name in every batch
        labelled, watch = labels is not None or shift_labels is not None, self.wants_hidden_states(output_hidden_states)
        read = self.read(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            lengths=lengths,
            past_key_values=past_key_values,
            use_cache=False if labelled and use_cache is None and past_key_values is None else use_cache,
            keep=logits_to_keep,
            watch=watch,
            **kwargs,
        )
        return CausalLMOutputWithPast(
            loss=self._loss(read, labels, shift_labels, num_items_in_batch) if labelled else None,
            logits=cast(Any, None if labelled and logits_to_keep is None else self._logits(read, logits_to_keep)),
            past_key_values=read.cache,
            hidden_states=self.hidden_states(read) if watch else None,
        )

    def _logits(self, read: Read, keep: int | torch.Tensor | None) -> torch.Tensor:
        x_BKD = read.layout.columns(read.hidden_ND, keep)
        with self._kernels():
            return project(self.lm_head, x_BKD.flatten(0, 1)).unflatten(0, x_BKD.shape[:2])

    def _loss(self, read: Read, labels: Ids, shift_labels: Ids, count: Any) -> torch.Tensor:
        if read.cache is not None:
            raise ZambaError("a pass with a cache has no gradients: give labels with use_cache=False")
        given = labels if shift_labels is None else shift_labels
        assert given is not None
        targets_N = targets(given.to(read.hidden_ND.device), read.layout, shifted=shift_labels is not None)
        with self._kernels():
            return loss(read.hidden_ND, self.lm_head, targets_N, count)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        if self.lm_head.weight.shape != self.zamba.embedding.weight.shape:
            self.lm_head = _head(self.zamba)
        self.lm_head.weight = self.zamba.embedding.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    # generate

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args: Any) -> None:
        """Give generate our cache, unless the caller brought one or wants none."""
        if model_kwargs.get("past_key_values") is not None:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        if generation_config.cache_implementation not in CACHES:
            raise ZambaError(
                f"cache_implementation={generation_config.cache_implementation!r}: there is one kind of cache here, "
                "with states of fixed size and keys and values that grow as needed"
            )
        if generation_config.use_cache is not False:
            cache = model_kwargs["past_key_values"] = ZambaCache()
            cache.recording = bool(generation_config.is_assistant)


class ClassifyingZamba(ZambaPreTrainedModel):
    """Scores (B, num_labels) of whole texts, from the last token that is no padding."""

    REST = ("score.weight",)

    def __init__(self, config: PretrainedConfig, *, zamba: Zamba | None = None):
        super().__init__(config, zamba=zamba)
        self.num_labels = config.num_labels
        embedding = self.zamba.embedding.weight
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False, device=embedding.device, dtype=embedding.dtype)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Ids = None,
        position_ids: Ids = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: Ids = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """labels: (B,), or (B, num_labels) for several labels a text; the loss is the one that the config's problem_type names.

        The last token is that of ``attention_mask``, else the last that is not the config's pad_token_id.
        """
        watch = self.wants_hidden_states(output_hidden_states)
        read = self.read(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=False if labels is not None and use_cache is None else use_cache,
            watch=watch,
            **kwargs,
        )
        scores = self.score(read.layout.unpack(read.hidden_ND)[self._last(read, input_ids, attention_mask)])
        return SequenceClassifierOutputWithPast(
            loss=None if labels is None else self._loss(scores, labels),
            logits=scores,
            past_key_values=read.cache,
            hidden_states=self.hidden_states(read) if watch else None,
        )

    def _loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss_function(logits=None, labels=labels, pooled_logits=scores, config=self.config)

    def _last(self, read: Read, input_ids: Ids, attention_mask: Ids) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows, and the column of each row's last token."""
        (B, T), device, pad = read.layout.shape, read.hidden_ND.device, self.config.pad_token_id
        rows = torch.arange(B, device=device)
        if attention_mask is not None:
            counted = attention_mask[:, -T:] != 0
        elif input_ids is not None and pad is not None:
            counted = input_ids != pad
        elif B > 1 and pad is None:
            raise ZambaError("several texts and no padding token: give attention_mask, or set config.pad_token_id")
        else:
            return rows, torch.full_like(rows, T - 1)
        return rows, (counted.to(device).int() * torch.arange(T, device=device)).argmax(dim=1)

    def init_rest(self) -> None:
        nn.init.normal_(self.score.weight, std=self.config.initializer_range)

    def fill_rest(self, extra: Mapping[str, torch.Tensor], ignore_mismatched_sizes: bool) -> set[str]:
        weight = extra.get("score.weight")
        if weight is not None and weight.shape == self.score.weight.shape:
            self.score.weight.data.copy_(weight)
            return set()
        if weight is not None and not ignore_mismatched_sizes:
            raise ZambaError(
                f"the file scores {weight.shape[0]} labels and the config has {self.num_labels}; "
                "pass ignore_mismatched_sizes=True to begin with new scores"
            )
        self.init_rest()
        return {"score.weight"}


def _head(zamba: Zamba) -> Linear:
    """A head that shares the embedding's weight."""
    c = zamba.config
    head = Linear(c.d_model, c.vocab_size, device="meta")
    head.weight = zamba.embedding.weight
    return head
