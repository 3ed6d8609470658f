"""Log-probabilities of the reference model, computed once and kept on disk."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import Progress

from zamba_lm.text.whole import replacing

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def cached_scores(trainer, dataset, folder: Path, name: str, *, pairs: int) -> tuple[list[float], list[float]]:
    """(chosen, rejected): the reference's log-probability of every answer of ``dataset``, in its order.

    Read from ``folder`` when it holds those of this model, this data and this way of cutting; otherwise computed, ``pairs`` at a
    time, and written there whole or not at all. Every process computes a share.
    """
    file = folder / f"{name}-{_key(trainer, dataset)}.npz"
    if not file.exists():
        found = dict(gather_object(_scores(trainer, dataset, pairs)))
        if trainer.is_world_process_zero():
            _write(file, np.array([found[i] for i in range(len(dataset))], dtype=np.float64))
        trainer.accelerator.wait_for_everyone()
    both = np.load(file)["scores"]
    return both[:, 0].tolist(), both[:, 1].tolist()


def _key(trainer, dataset) -> str:
    """A name for (reference model, pairs, settings that change what is scored)."""
    args = trainer.args
    seen = hashlib.sha256(repr((trainer._precompute_model_hash, args.max_length, args.truncation_mode, args.ld_alpha)).encode())
    for row in dataset.select_columns(list(COLUMNS)):
        for column in COLUMNS:
            seen.update(np.asarray([len(row[column]), *row[column]], dtype=np.int64).tobytes())
    return seen.hexdigest()[:16]


def _scores(trainer, dataset, pairs: int) -> list[tuple[int, tuple[float, float]]]:
    """(number of the pair, its two scores) for this process's share; pairs of like length go together."""
    lengths = [sum(map(len, row)) for row in zip(*(dataset[column] for column in COLUMNS))]
    order = sorted(range(len(dataset)), key=lengths.__getitem__, reverse=True)  # what needs most memory fails first, if at all
    batches = [order[start : start + pairs] for start in range(0, len(order), pairs)]
    mine = batches[trainer.args.process_index :: trainer.args.world_size]
    was_training, found = trainer.model.training, []
    trainer.model.eval()
    with Progress(console=Console(stderr=True), disable=not trainer.is_world_process_zero()) as bar:
        for numbers in bar.track(mine, description="scoring with the reference"):
            inputs = trainer._prepare_inputs(trainer.data_collator([dataset[i] for i in numbers]))
            both = torch.stack(trainer.compute_ref_log_probs(trainer.model, inputs), 1)
            found += zip(numbers, map(tuple, both.double().tolist()))
    trainer.model.train(was_training)
    return found


def _write(file: Path, scores: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as beside, beside.open("wb") as out:
        np.savez(out, scores=scores)
