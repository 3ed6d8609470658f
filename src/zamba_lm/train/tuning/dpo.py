"""Preference tuning: TRL's DPOTrainer with our loss, and with a reference that is asked once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from trl import DPOTrainer
from trl.trainer import dpo_trainer

from zamba_lm.train.trainer.sturdy import Sturdy
from zamba_lm.train.tuning.fingerprint import fingerprint
from zamba_lm.train.tuning.native import Native, Paced, own_head
from zamba_lm.train.tuning.reference import cached_scores


class Dpo(Native, Paced, Sturdy, DPOTrainer):
    """``DPOTrainer`` for ``zamba_lm.hf`` models, run by ``fit`` (see ``Sturdy``).

    Chosen and rejected answers go through the model in one packed pass without padding. With ``precompute_ref_log_probs`` the
    reference (the model before the first step, or the model without its adapters) scores every pair once; the scores are kept in
    the run folder for whoever starts again. Data: what TRL takes, or finished ids in the columns prompt_ids, chosen_ids and
    rejected_ids.
    """

    def __init__(self, *args, **kwargs):
        with _quick_hash():
            super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if "prompt_ids" in (dataset.column_names or ()):
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        own_head(self.model)
        folder = Path(self.args.output_dir) / "reference"
        chosen, rejected = cached_scores(self, dataset, folder, name, pairs=batch_size)
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def _count(self, inputs) -> None:
        self.tokens_seen += int(inputs["attention_mask"].sum()) * self.readers


@contextmanager
def _quick_hash() -> Iterator[None]:
    """TRL names a reference by all its weights in float32 on one core: 20 s for Zamba2-2.7B."""
    theirs = dpo_trainer.hash_module
    dpo_trainer.hash_module = fingerprint
    try:
        yield
    finally:
        dpo_trainer.hash_module = theirs
