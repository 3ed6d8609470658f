"""What happens in every recipe on running text: model, rows, trainer, and at the end a finished model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from zamba_lm.errors import ZambaError
from zamba_lm.hf import wrap
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.dtypes import as_dtype
from zamba_lm.model.load import as_device
from zamba_lm.model.zamba import Zamba
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train import optim
from zamba_lm.train.data import Mixture, Stream, collate
from zamba_lm.train.recipes import text
from zamba_lm.train.recipes.base import Language, Optim
from zamba_lm.train.recipes.budget import rows_at_once
from zamba_lm.train.recipes.origin import config_of, weights_into
from zamba_lm.train.recipes.speech import speaking, tokenizer_of
from zamba_lm.train.scale.mesh import readers, refuse
from zamba_lm.train.trainer.arguments import steady_arguments
from zamba_lm.train.trainer.feed import Feed, Phase
from zamba_lm.train.trainer.schedules import schedule
from zamba_lm.train.trainer.sturdy import Sturdy, Watch
from zamba_lm.train.trainer.zamba_trainer import ZambaTrainer

DEVICES = ("auto", "cuda", "cpu")


@dataclass(frozen=True)
class Leg:
    """``steps`` steps with rows of one length; ``rows`` a step, of all devices together."""

    row: int
    rows: int
    steps: int


def train(
    config: Language, legs: Sequence[Leg], *, resume: bool, go_on: Callable[[Mixture], None] = lambda mixture: None
) -> Path:
    """Train, measure what is held out, write OUT/model; returns that folder. ``go_on`` may move the mixture to where an earlier
    run left it."""
    refuse(config, nf4=False, layers=True)
    steps = sum(leg.steps for leg in legs)
    shape, longest = config_of(config), max(legs, key=lambda leg: leg.row)
    micro = rows_at_once(config, shape, row=longest.row, rows=longest.rows)
    args = arguments(config, steps=steps, micro=micro, rows=longest.rows)
    tokenizer = tokenizer_of(config)
    zamba = _model(config, shape if config.start else speaking(shape, tokenizer), args.device)
    trainer = trainer_kind(ZambaTrainer, config)(
        wrap(zamba),
        args=args,
        feed=feed_of(config, legs, longest, micro, args, tokenizer, shape, go_on),
        rate=rate_of(config, steps),
        build_optimizer=lambda model: optimizer(model.zamba, config.optim),
        held_out=text.held_out(config.data, zamba, tokenizer, longest.row, config.run.eval_bytes),
        beside=tokenizer.save,
        watch=watch(config),
    )
    trainer.fit(resume=resume)
    return finish(trainer, tokenizer, config)


def trainer_kind(kind: type[Sturdy], config: Language, *, adapters: bool = False) -> Callable[..., Any]:
    """The trainer, or one that spreads its model over devices. ``adapters``: they alone are trained, and lie whole on each."""
    if config.scale.shard == "none" and config.scale.tensor == 1:
        return kind
    from zamba_lm.train.scale.sharded import Sharded, Spreading

    first = Spreading if adapters else Sharded
    return partial(type(f"{first.__name__}{kind.__name__}", (first, kind), {}), scale=config.scale)


def arguments(config, *, steps: int, micro: int, rows: int, kind: type[TrainingArguments] = TrainingArguments, **more):
    """What Trainer and accelerate are told."""
    run = config.run
    as_dtype(run.final_dtype)  # a name that is none is told now, not when all is done
    given = steady_arguments(
        output_dir=config.out,
        max_steps=steps,
        per_device_train_batch_size=micro,
        max_grad_norm=config.optim.clip,
        bf16=run.bf16,
        use_cpu=_on_cpu(run.device),
        logging_steps=run.log_every,
        save_steps=run.save_every,
        eval_strategy="steps" if run.eval_every else "no",
        eval_steps=run.eval_every or None,
        seed=run.seed,
        ignore_data_skip=True,  # the feed goes on by itself
        remove_unused_columns=False,
    )
    args = kind(**given | more)
    args.gradient_accumulation_steps = rows // (micro * readers(config.scale, args.world_size))
    return args


def _on_cpu(device: str) -> bool:
    """ZambaError for a GPU that is not there: nobody wants to find out the next day that a CPU was used."""
    if device not in DEVICES:
        raise ZambaError(
            f"run.device is {device!r}, expected auto, cuda or cpu; "
            "which GPUs a run sees is CUDA_VISIBLE_DEVICES' matter, how many torchrun's"
        )
    return as_device(device).type == "cpu"


def optimizer(zamba: Zamba, o: Optim) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the parameters of a model."""
    matrix_lr = o.matrix_lr if o.name == "muon" else o.lr
    settings = {"weight_decay": o.weight_decay, "embedding_decay": o.embedding_decay, "eps": o.eps, "momentum": o.momentum}
    return optim.build(zamba, o.name, lr=matrix_lr, other_lr=o.lr, betas=(o.beta1, o.beta2), **settings)


def watch(config: Language) -> Watch:
    run = config.run
    return Watch(
        keep=run.keep, stop_after=run.stop_after, peak_flops=run.peak_flops, tensorboard=run.tensorboard, wandb=run.wandb
    )


def _model(config: Language, shape: ZambaConfig, device: torch.device) -> Zamba:
    """float32 parameters: drawn, or from ``config.start``."""
    zamba = Zamba(shape, device=device, dtype=torch.float32)
    if config.start:
        weights_into(zamba, config.start)
    else:
        zamba.init_weights(config.run.seed)
    zamba.requires_grad_(True)
    return zamba.recompute(*(() if config.batch.recompute == "none" else (config.batch.recompute,)))


def feed_of(config, legs, longest, micro, args, tokenizer, shape, go_on=lambda mixture: None) -> Feed:
    accumulated, count = args.gradient_accumulation_steps, readers(config.scale, args.world_size)
    phases = []
    for number, leg in enumerate(legs):
        data = replace(config.data, seed=config.data.seed + number)  # every length begins with other documents
        sources = text.rows(data, leg.row, tokenizer, shape.vocab_size)
        mixture = Mixture(sources, text.weights(data), seed=data.seed)
        if number == 0:
            go_on(mixture)
        stream = Stream(mixture, rank=args.process_index // config.scale.tensor, world=count)
        last = number == len(legs) - 1
        phases.append(Phase(stream, micro * leg.rows // longest.rows, None if last else leg.steps * accumulated, count))
    return Feed(phases, collate, device=args.device)


def rate_of(config: Language, steps: int):
    rate = config.rate
    return schedule(
        rate.kind, steps=steps, warmup=rate.warmup_steps(steps), floor=rate.floor, decay_from=rate.decay_from, gamma=rate.gamma
    )


def finish(trainer: ZambaTrainer, tokenizer: Tokenizer, config: Language) -> Path:
    """The finished model in OUT/model."""
    target = Path(config.out) / "model"
    trainer.export(target, config.run.final_dtype)
    if trainer.is_world_process_zero():
        tokenizer.save(target)
    trainer.accelerator.wait_for_everyone()
    trainer.say(f"wrote {target}")
    return target
