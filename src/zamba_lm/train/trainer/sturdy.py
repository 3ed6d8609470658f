"""Sturdy: what transformers' Trainer lacks for runs that last, as a mixin for it and for every trainer built on it.

    class Sft(Sturdy, SFTTrainer): ...

    trainer = Sft(model, args=SFTConfig(**steady_arguments(output_dir="runs/a", ...)), watch=Watch(keep=2), ...)
    trainer.fit(resume=True)

Checkpoints are whole or absent and a resumed run gives the same losses bit for bit (``kept.py``), signals save and leave, steps
that are not finite are left out (``guard.py``), and the run tells how it is doing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedDataParallelKwargs
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from zamba_lm.errors import ZambaError
from zamba_lm.train.trainer import checkpoints
from zamba_lm.train.trainer.guard import Guard
from zamba_lm.train.trainer.journal import Journal
from zamba_lm.train.trainer.kept import Kept
from zamba_lm.train.trainer.progress import Pace, memory_gib
from zamba_lm.train.trainer.screen import Screen, screen
from zamba_lm.train.trainer.signals import StopRequest


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a run is watched over. ``keep`` checkpoints stay (0: all); ``stop_after`` steps in a row that are not finite end the
    run; ``peak_flops`` of one device, operations a second, for the MFU (None: by the device's name; unknown: not shown);
    ``tensorboard`` and ``wandb`` report there as well."""

    keep: int = 2
    stop_after: int = 10
    peak_flops: float | None = None
    tensorboard: bool = False
    wandb: bool = False


class Sturdy(Kept):
    """Put before a Trainer class. ``fit`` takes the place of ``train``; see the module."""

    measure_last = False  # evaluate behind the last step

    def __init__(self, *args: Any, watch: Watch | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.watch = watch or Watch()
        for loud in (ProgressCallback, PrinterCallback):
            self.remove_callback(loud)
        self.run = Path(self.args.output_dir)
        self.guard = Guard(self.watch.stop_after, self.args.device)
        self.journal = Journal(self.run)
        self.pace = Pace(self.args.device, peak=self.watch.peak_flops)
        self.stop_request = StopRequest()
        self.stopped_by = 0
        self.tokens_seen = 0  # by all processes
        self.readers = self.args.world_size  # processes that read rows of their own
        self._resume_from: Path | None = None
        self.screen: Screen | None = None
        self.add_callback(_Steps(self))

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        """Gradients and the buckets in which processes exchange them are the same memory."""
        found = super()._build_accelerator_args(**kwargs)
        for handler in found["kwargs_handlers"]:
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.gradient_as_bucket_view = True
        return found

    # running

    def fit(self, *, resume: bool = False) -> None:
        """Train to the end. With ``resume`` go on from the newest checkpoint of the run folder, or from the start without one.

        ZambaError when the folder holds checkpoints and ``resume`` is not asked for, when the checkpoint is of another shape and
        when the run diverges or cannot save at its end. A run that a signal ends raises SystemExit with 128 + its number.
        """
        self.screen = screen(speaks=self.is_world_process_zero())
        try:
            self._resume_from = self._starting_point(resume)
            if self._resume_from and checkpoints.step_of(self._resume_from) >= self.args.max_steps > 0:
                self._finished(self._resume_from)
            else:
                with self.stop_request.listening(), self._reports():
                    self.train(resume_from_checkpoint=str(self._resume_from) if self._resume_from else None)
        finally:
            self.screen.close()
        if self.stopped_by:
            raise SystemExit(128 + self.stopped_by)

    def _starting_point(self, resume: bool) -> Path | None:
        """The checkpoint to go on from; what was interrupted is taken away and the log cut to fit."""
        newest = checkpoints.newest(self.run)
        if newest and not resume:
            raise ZambaError(f"{self.run} holds {newest.name} already; go on from it with --resume, or choose another folder")
        if self.is_world_process_zero():
            for name in checkpoints.sweep(self.run):
                self.say(f"{name.lstrip('.')} was interrupted and is taken away")
            self.journal.cut(checkpoints.step_of(newest) if newest else 0)
            if resume:
                self.say(f"going on from {newest}" if newest else f"no checkpoint in {self.run} yet: from the start")
        self.accelerator.wait_for_everyone()
        return newest

    def _finished(self, checkpoint: Path) -> None:
        """Nothing is left to train: the model as it was in the end."""
        self.say(f"{checkpoint} is the last step of this run: nothing left to train")
        self._read_checkpoint(checkpoint)
        self.state.global_step = self.state.max_steps = checkpoints.step_of(checkpoint)

    def say(self, text: str) -> None:
        if self.screen:
            self.screen.say(text)

    @contextmanager
    def _reports(self) -> Iterator[None]:
        """TensorBoard and Weights & Biases, where asked for; TensorBoard forgets what comes after the checkpoint."""
        if self.watch.tensorboard and self.is_world_process_zero():
            from transformers.integrations import TensorBoardCallback

            self.add_callback(TensorBoardCallback(_tensorboard(self.run, self._resume_from)))
        if self.watch.wandb:
            self.add_callback(_wandb())
        yield

    # a step

    def training_step(self, model, inputs, *args, **kwargs):
        self._count(inputs)
        return self.guard.see_loss(super().training_step(model, inputs, *args, **kwargs))

    def _count(self, inputs) -> None:
        ids = next((value for key, value in inputs.items() if key.endswith("input_ids")), None)
        self.tokens_seen += 0 if ids is None else ids.numel() * self.readers

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        self.guard.see_gradient(norm, inner, self.state.global_step + 1)
        return norm

    def floating_point_ops(self, inputs) -> int:
        """Operations of a step on ``inputs``, for the MFU; 0 where they are not known."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._numbers(logs["loss"])
        super().log(logs, start_time)

    def _numbers(self, loss: float) -> dict[str, float]:
        """What Trainer does not log: the pace, the memory, steps left out (whose losses the mean leaves out too)."""
        counts = self.guard.read()
        steps, left_out = self._logged_steps, counts["bad_losses"] - self._bad_losses_logged
        self._bad_losses_logged = counts["bad_losses"]
        micro = steps * self.args.gradient_accumulation_steps
        loss = loss * micro / (micro - left_out) if left_out < micro else float("nan")
        pace = self.pace.look(
            self.state.global_step, self.state.max_steps, self.tokens_seen, self.state.total_flos, self.args.world_size
        )
        skipped = {"skipped": counts["skipped"]} if counts["skipped"] else {}
        return {"loss": loss, "tokens": self.tokens_seen, **pace, "memory_gib": memory_gib(self.args.device), **skipped}

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        self._logged_steps = self.state.global_step - self._globalstep_last_logged
        super()._maybe_log_save_evaluate(*args, **kwargs)


class _Steps(TrainerCallback):
    """Trainer's moments, passed on."""

    def __init__(self, trainer: Sturdy):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._begin()

    def on_step_end(self, args, state, control, **kwargs):
        stop = self.trainer.stop_request.agreed(args.device)
        if stop:
            self.trainer.stopped_by = stop
            self.trainer.say(f"signal {stop}: saving step {state.global_step} and leaving; go on with --resume")
            control.should_save = control.should_training_stop = True
        if state.global_step >= state.max_steps and self.trainer.measure_last:
            control.should_evaluate = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        entry = {"step": state.global_step} | {key: value for key, value in logs.items() if key not in ("epoch", "total_flos")}
        self.trainer.journal.write(entry)
        if self.trainer.screen:
            self.trainer.screen.show(entry, state.max_steps)


def _tensorboard(run: Path, checkpoint: Path | None):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ZambaError("TensorBoard is not installed; pip install tensorboard, or leave out run.tensorboard=true") from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=checkpoints.step_of(checkpoint) + 1 if checkpoint else None)


def _wandb() -> TrainerCallback:
    from transformers.integrations import WandbCallback, is_wandb_available

    if not is_wandb_available():
        raise ZambaError("Weights & Biases is not installed; pip install wandb, or leave out run.wandb=true")
    return WandbCallback()
