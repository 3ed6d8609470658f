"""The trainer of pretrain, anneal and long-context: packed rows, the fused loss, schedules of ours, bits per byte held out."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from zamba_lm.model.config import ZambaConfig
from zamba_lm.train.optim import clip
from zamba_lm.train.trainer.feed import Feed
from zamba_lm.train.trainer.schedules import Rate
from zamba_lm.train.trainer.sturdy import Sturdy


class ZambaTrainer(Sturdy, Trainer):
    """Trains a wrapped Zamba (``hf.wrap``) on the batches of ``feed``.

    ``build_optimizer`` makes the optimizer of the model; ``rate`` maps the number of steps done to the share of each group's
    peak learning rate. ``held_out`` maps names to functions that measure the model in bits per byte, of the whole under "" and
    of parts by name; they are called where evaluation is due. ``beside`` puts into a checkpoint's folder what belongs beside
    the weights, as a tokenizer does.
    """

    def __init__(
        self,
        *args,
        feed: Feed,
        rate: Rate,
        build_optimizer: Callable[[nn.Module], Optimizer],
        held_out: Mapping[str, Callable[[], dict[str, float]]] | None = None,
        beside: Callable[[Path], None] | None = None,
        **kwargs,
    ):
        self.feed, self._rate, self._build_optimizer, self._beside = feed, rate, build_optimizer, beside
        self.held_out = dict(held_out or {})
        self.measure_last = bool(self.held_out)
        super().__init__(*args, eval_dataset=self.held_out, **kwargs)
        self._flops = Operations(self.model.zamba.config)

    def get_train_dataloader(self) -> Feed:  # type: ignore[override]
        return self.feed

    def create_optimizer(self, model=None) -> Optimizer:
        if self.optimizer is None:
            self.optimizer = self._build_optimizer(self.model if model is None else model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LambdaLR:
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self._rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model):
        """Without a pass over the gradients where the optimizer can shorten them on its way."""
        if self.is_fsdp_enabled:
            return super()._clip_grad_norm(model)
        return clip(getattr(self.optimizer, "optimizer", self.optimizer), self.args.max_grad_norm)

    def floating_point_ops(self, inputs) -> int:
        lengths = inputs.get("lengths") or (inputs["input_ids"].shape[1],) * inputs["input_ids"].shape[0]
        return self._flops(lengths)

    def extra_state(self) -> dict:
        return {"feed": self.feed.state_dict()}

    def load_extra_state(self, state: dict) -> None:
        self.feed.load_state_dict(state["feed"])

    def _write_checkpoint(self, folder: Path) -> None:
        super()._write_checkpoint(folder)
        if self._beside and self.is_world_process_zero():
            self._beside(folder)

    def fit(self, *, resume: bool = False) -> None:
        try:
            super().fit(resume=resume)
        finally:
            self.feed.close()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Bits per byte of every held-out source, logged as ``eval_bpb_SOURCE`` and of parts as ``eval_bpb_SOURCE/PART``;
        processes share the sources.
        """
        training = self.model.training
        self.model.eval()
        with self.pace.pause(), torch.inference_mode(), self.accelerator.autocast():
            measured = self._measured()
        self.model.train(training)
        found = {f"{metric_key_prefix}_bpb_{name}": bits for name, bits in measured.items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _measured(self) -> dict[str, float]:
        """In the order of ``held_out``, parts behind their source."""
        found = self._by_source()
        return {f"{name}/{part}" if part else name: bits for name in self.held_out for part, bits in found[name].items()}

    def _by_source(self) -> dict[str, dict[str, float]]:
        """Each source is measured by one process."""
        mine = [name for number, name in enumerate(self.held_out) if number % self.args.world_size == self.args.process_index]
        found = {name: self.held_out[name]() for name in mine}
        if self.args.world_size > 1:
            every: list[dict] = [{}] * self.args.world_size
            dist.all_gather_object(every, found)
            found = {name: bits for one in every for name, bits in one.items()}
        return found


class Operations:
    """Floating-point operations of a training step, a closed form of the lengths of the sequences in it."""

    def __init__(self, config: ZambaConfig):
        one, two = (config.flops(tokens, training=True) for tokens in (1, 2))
        self._pair = two - 2 * one  # of each pair of a token with one it attends to, itself included
        self._token = one - self._pair

    def __call__(self, lengths: tuple[int, ...]) -> int:
        pairs = sum(length * (length + 1) for length in lengths) // 2
        return self._token * sum(lengths) + self._pair * pairs
