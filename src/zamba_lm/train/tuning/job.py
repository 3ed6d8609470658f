"""What happens in every tuning recipe: a model that is there, chats or pairs, a trainer, and at the end a finished model."""

import warnings
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerFast, TrainingArguments
from trl import DPOConfig, SFTConfig

from zamba_lm.errors import ZambaError
from zamba_lm.hf import wrap
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.load import read_config
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import pairs
from zamba_lm.train.recipes import language, text
from zamba_lm.train.recipes.budget import rows_at_once
from zamba_lm.train.recipes.origin import loaded, origin
from zamba_lm.train.recipes.speech import tokenizer_of
from zamba_lm.train.scale.mesh import refuse
from zamba_lm.train.tuning import budget
from zamba_lm.train.tuning.dpo import Dpo
from zamba_lm.train.tuning.lora import Lora, peft_config
from zamba_lm.train.tuning.merge import merge
from zamba_lm.train.tuning.native import quiet
from zamba_lm.train.tuning.nf4 import to_nf4
from zamba_lm.train.tuning.sft import SftRows

# chats


@quiet()
def tune_chats(config, *, lora: Lora | None = None, nf4: bool = False, resume: bool) -> Path:
    """Train on rows of chats; returns OUT/model, or OUT/adapter where nothing is merged."""
    refuse(config, nf4=nf4, layers=lora is None)
    shape, tokenizer, batch = read_config(origin(config.start)), tokenizer_of(config), config.batch
    config = replace(config, data=weighted(config, tokenizer, shape))
    leg = language.Leg(batch.row, batch.rows, steps_of(config, tokenizer, shape))
    micro = _at_once(config, shape, lora, nf4, row=batch.row, rows=batch.rows, unit="rows")
    args = language.arguments(config, steps=leg.steps, micro=micro, rows=batch.rows, kind=SFTConfig, **SKIPPED)
    model = model_of(config, args.device, adapters=lora is not None, nf4=nf4)
    trainer = language.trainer_kind(SftRows, config, adapters=lora is not None)(
        model,
        args=args,
        feed=language.feed_of(config, [leg], leg, micro, args, tokenizer, shape),
        rate=language.rate_of(config, leg.steps),
        build_optimizer=lambda model: language.optimizer(model.zamba, config.optim),
        held_out=text.held_out(config.data, model.zamba, tokenizer, batch.row, config.run.eval_bytes),
        watch=language.watch(config),
        processing_class=for_trl(tokenizer, Path(config.out), args),
        peft_config=peft_config(model, lora) if lora else None,
    )
    trainer.fit(resume=resume)
    return finish(trainer, config, tokenizer, adapters=lora is not None)


SKIPPED = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "gradient_checkpointing": False}


def weighted(config, tokenizer: Tokenizer, shape: ZambaConfig):
    """The recipe's data, each source weighted by its rows where no weights are given, so that an epoch is one of each."""
    if config.data.weights:
        return config.data
    rows = text.rows(config.data, config.batch.row, tokenizer, shape.vocab_size)
    return replace(config.data, weights={name: float(one.count()) for name, one in rows.items()})


def steps_of(config, tokenizer: Tokenizer, shape: ZambaConfig) -> int:
    """Optimizer steps of ``epochs`` passes over the rows, or of batch.tokens."""
    if not config.epochs:
        if config.batch.tokens < 1:
            raise ZambaError("epochs and batch.tokens are both 0; set one of them, such as --set epochs=1")
        return config.batch.steps
    rows = text.rows(config.data, config.batch.row, tokenizer, shape.vocab_size)
    return max(1, ceil(config.epochs * sum(one.count() for one in rows.values()) / config.batch.rows))


# pairs


@quiet()
def tune_pairs(config, *, lora: Lora | None = None, nf4: bool = False, resume: bool) -> Path:
    """Train on preference pairs; returns OUT/model, or OUT/adapter where nothing is merged."""
    refuse(config, nf4=nf4, layers=False)
    shape, tokenizer, batch = read_config(origin(config.start)), tokenizer_of(config), config.batch
    data = pairs_of(config, tokenizer, shape, "train")
    held_out = pairs_of(config, tokenizer, shape, "held_out") if config.data.held_out else None
    micro = _at_once(config, shape, lora, nf4, row=2 * batch.length, rows=batch.pairs, unit="pairs")
    steps = max(1, ceil(batch.epochs * len(data) / batch.pairs))
    args = language.arguments(config, steps=steps, micro=micro, rows=batch.pairs, kind=DPOConfig, **_preference(config, micro))
    if held_out is None:
        args.eval_strategy = "no"
    model = model_of(config, args.device, adapters=lora is not None, nf4=nf4)
    trainer = language.trainer_kind(Dpo, config, adapters=lora is not None)(
        model,
        args=args,
        train_dataset=data,
        eval_dataset=held_out,
        rate=language.rate_of(config, steps),
        build_optimizer=lambda model: language.optimizer(model.zamba, config.optim),
        watch=language.watch(config),
        processing_class=for_trl(tokenizer, Path(config.out), args),
        peft_config=peft_config(model, lora) if lora else None,
    )
    trainer.measure_last = held_out is not None
    trainer.fit(resume=resume)
    return finish(trainer, config, tokenizer, adapters=lora is not None)


def pairs_of(config, tokenizer: Tokenizer, shape: ZambaConfig, split: str) -> Dataset | None:
    """All pairs of the sources that are short enough; None where a source holds out nothing. ZambaError when none is left."""
    if not config.data.sources:
        raise ZambaError("data.sources names no pairs; give a tokenised set with --set data.sources.NAME=FOLDER")
    found = []
    for where in config.data.sources.values():
        if split == "held_out" and not text.holds_out(config.data, where):
            continue
        shards = text.opened(config.data, where, split, tokenizer)
        shards.refuse_model(shape.vocab_size)
        found.append(pairs(shards, longest=config.batch.length))
        if left_out := len(shards) - len(found[-1]):
            warnings.warn(
                f"{shards.folder}: {left_out:,} of {len(shards):,} {split} pairs are longer than {config.batch.length:,} tokens "
                "(batch.length) and left out",
                stacklevel=2,
            )
    return concatenate_datasets(found) if found else None


def _preference(config, micro: int) -> dict:
    """TRL's names for what the recipe says."""
    chosen = config.dpo.sft > 0
    return {
        "beta": config.dpo.beta,
        "loss_type": [config.dpo.loss, "sft"] if chosen else [config.dpo.loss],
        "loss_weights": [1.0, config.dpo.sft] if chosen else None,
        "label_smoothing": config.dpo.label_smoothing,
        "max_length": None,  # longer pairs are left out, not cut
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": 2 * micro,
        "per_device_eval_batch_size": 2 * micro,
        "prediction_loss_only": True,
        "gradient_checkpointing": False,
        "ignore_data_skip": False,  # Trainer finds its place in a table by itself
    }


# both


def model_of(config, device: torch.device, *, adapters: bool, nf4: bool):
    """The model to tune: float32 for a whole one, in the dtype of products under adapters, in four bits where asked."""
    folder = origin(config.start)
    dtype = torch.bfloat16 if adapters and config.run.bf16 else torch.float32
    zamba = loaded(folder, device="cpu" if nf4 else device, dtype=dtype)
    zamba.requires_grad_(not adapters)
    if config.batch.recompute != "none":
        zamba.recompute(config.batch.recompute)
    model = wrap(zamba, name_or_path=str(folder))
    return to_nf4(model, device=device, compute_dtype=dtype) if nf4 else model


def _at_once(config, shape: ZambaConfig, lora: Lora | None, nf4: bool, *, row: int, rows: int, unit: str) -> int:
    if lora is None:
        return rows_at_once(config, shape, row=row, rows=rows)
    return budget.at_once(config, shape, budget.Kind(lora, nf4), row=row, rows=rows, unit=unit)


def for_trl(tokenizer: Tokenizer, folder: Path, args: TrainingArguments) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it; TRL wants one, and saves it with every checkpoint."""
    with args.main_process_first(local=False):
        if args.process_index == 0:
            tokenizer.save(folder / "tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(str(folder / "tokenizer"))


def finish(trainer, config, tokenizer: Tokenizer, *, adapters: bool) -> Path:
    """Write what was made: OUT/adapter for adapters, OUT/model for whole and for merged models."""
    target, adapter = Path(config.out) / "model", Path(config.out) / "adapter"
    if not adapters:
        trainer.export(target, config.run.final_dtype)
    if trainer.is_world_process_zero():
        if adapters:
            trainer.model.save_pretrained(str(adapter))
            tokenizer.save(adapter)  # which may have learnt a chat template that the base has not
            if config.merge:
                merge(adapter, target, base=origin(config.start), out_dtype=config.run.final_dtype, tokenizer=tokenizer)
        else:
            tokenizer.save(target)
    trainer.accelerator.wait_for_everyone()
    made = adapter if adapters and not config.merge else target
    trainer.say(f"wrote {made}")
    return made
