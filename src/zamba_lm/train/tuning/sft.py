"""Supervised tuning: TRL's SFTTrainer with our loss and without padding, on whole models and on adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, chain

import torch
from datasets import Dataset
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from zamba_lm.text.chat import CHATML
from zamba_lm.train.data import collate
from zamba_lm.train.trainer.sturdy import Sturdy
from zamba_lm.train.trainer.zamba_trainer import ZambaTrainer
from zamba_lm.train.tuning.native import Native, Paced

CONTENT = "{{ message.content }}<|im_end|>"
MARKED = CHATML.replace(
    CONTENT,
    "{% if message.role == 'assistant' %}{% generation %}" + CONTENT + "{% endgeneration %}{% else %}" + CONTENT + "{% endif %}",
)
"""ChatML that tells TRL what the assistant says; it renders the same text."""


class FusedLoss(Native):
    """The mean of -log p over what ``labels`` count, made without logits; TRL's other losses take TRL's way."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        fused = self.args.loss_type == "nll" and self.label_smoother is None and self.compute_loss_func is None
        if return_outputs or not fused:
            return super().compute_loss(model, _with_positions(inputs), return_outputs, num_items_in_batch)
        loss = model(**inputs, use_cache=False, num_items_in_batch=num_items_in_batch).loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count is of all processes, and gradients are averaged over them
        return loss


class Sft(FusedLoss, Paced, Sturdy, SFTTrainer):
    """``SFTTrainer`` for ``zamba_lm.hf`` models, run by ``fit`` (see ``Sturdy``).

    ``train_dataset`` is any that TRL takes, packed by it (``packing=True``) or not. A batch is laid end to end with the lengths
    of its sequences, so that no step computes padding. Only what ``labels`` (or the assistant's turns, with
    ``assistant_only_loss``) count is learned.
    """

    def __init__(self, model, args, *, processing_class, **kwargs):
        with _marked(processing_class):
            super().__init__(model, args, processing_class=processing_class, **kwargs)
        if isinstance(self.data_collator, DataCollatorForLanguageModeling):
            self.data_collator = packed


class SftRows(FusedLoss, ZambaTrainer, SFTTrainer):
    """The same on the rows of a ``feed`` (see ``ZambaTrainer``), which TRL need not prepare."""

    def __init__(self, *args, **kwargs):
        stand_in = Dataset.from_dict({"input_ids": [[0, 0]], "labels": [[0, 0]]})  # TRL looks at a first row
        super().__init__(*args, train_dataset=stand_in, data_collator=collate, **kwargs)

    def floating_point_ops(self, inputs) -> int:
        """Frozen weights need no gradient of their own: two of the three products of a step are left."""
        whole, frozen = super().floating_point_ops(inputs), not self.model.zamba.embedding.weight.requires_grad
        return whole * 2 // 3 if frozen else whole


@contextmanager
def _marked(tokenizer) -> Iterator[None]:
    """While TRL prepares its data, the template of our chat models has the marks that ``assistant_only_loss`` needs."""
    template = tokenizer.chat_template
    try:
        if template == CHATML:
            tokenizer.chat_template = MARKED
        yield
    finally:
        tokenizer.chat_template = template


def packed(examples: list[dict]) -> dict:
    """One row of everything: input_ids (1, T), labels (1, T) with nothing to learn at a beginning, lengths of the sequences.

    An example has input_ids, labels (None: all of them) and, when it holds several sequences, their seq_lengths.
    """
    lengths = tuple(chain.from_iterable(one.get("seq_lengths") or (len(one["input_ids"]),) for one in examples))
    ids = torch.tensor(list(chain.from_iterable(one["input_ids"] for one in examples)))
    labels = torch.tensor(list(chain.from_iterable(one.get("labels") or one["input_ids"] for one in examples)))
    labels[[0, *accumulate(lengths[:-1])]] = -100
    return {"input_ids": ids[None], "labels": labels[None], "lengths": lengths}


def _with_positions(inputs: dict) -> dict:
    """TRL counts tokens by position_ids where there is no mask."""
    if "lengths" not in inputs:
        return inputs
    ids = inputs["input_ids"]
    return {**inputs, "position_ids": torch.cat([torch.arange(n, device=ids.device) for n in inputs["lengths"]]).view_as(ids)}
