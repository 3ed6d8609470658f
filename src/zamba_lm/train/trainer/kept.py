"""Checkpoints of a trainer that are whole or absent, and going on from one as if nothing had happened."""

import json
import shutil
from pathlib import Path
from zipfile import is_zipfile

import torch
import torch.distributed as dist
from transformers.trainer_callback import ExportableState

from zamba_lm.errors import ZambaError
from zamba_lm.model.weights import save_weights
from zamba_lm.train.trainer import checkpoints
from zamba_lm.train.trainer.checkpoints import STATE
from zamba_lm.train.trainer.restore import restore_weights

ZIPPED = ("optimizer.pt", "scheduler.pt")  # as torch writes them: cut short they are no zip files


def _damaged(folder: Path, name: str) -> ZambaError:
    return ZambaError(f"{folder} is damaged, {name} is missing or cut short: move the folder away, and an earlier one is taken")


class Kept:
    """The half of ``Sturdy`` that writes and reads checkpoints. ``_write_checkpoint`` and ``_read_checkpoint`` are there to be
    replaced (sharded checkpoints), ``extra_state`` and ``load_extra_state`` to be added to (the place in the data)."""

    # saving

    def _save_checkpoint(self, model, trial) -> None:
        """A whole checkpoint or none. A disk that is full is told about, and the run goes on with the earlier ones; at the last
        step it is an error."""
        step = self.state.global_step
        if (self.run / checkpoints.name_of(step)).is_dir():
            return
        with self.pace.pause():
            failed = self._try_to_save(step)
        if failed and (step >= self.state.max_steps or self.stopped_by):
            raise failed
        if failed:
            self.say(f"{failed}; earlier checkpoints are whole, the run goes on and tries again at its next save")

    def _try_to_save(self, step: int) -> ZambaError | None:
        folder, failed = self._written_aside(step)
        if not failed and self.is_world_process_zero():
            failed = self._commit(step, folder)
        if failed and self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return failed

    def _written_aside(self, step: int) -> tuple[Path, ZambaError | None]:
        """A checkpoint under a name that does not count yet, and what went wrong with it, on any process."""
        folder, failed = checkpoints.staged(self.run, step), None
        try:
            with checkpoints.disk_trouble(checkpoints.name_of(step), folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._write_checkpoint(folder)
                self.journal.flush()
        except ZambaError as error:
            failed = error
        if self._any_process(failed is not None):
            failed = failed or ZambaError(f"another process could not save {checkpoints.name_of(step)}")
        return folder, failed

    def _commit(self, step: int, folder: Path) -> ZambaError | None:
        try:
            with checkpoints.disk_trouble(checkpoints.name_of(step), folder):
                checkpoints.commit(self.run, step)
                checkpoints.prune(self.run, self.watch.keep)
        except ZambaError as error:
            return error
        return None

    def _any_process(self, mine: bool) -> bool:
        if self.args.world_size == 1:
            return mine
        flag = torch.tensor(int(mine), device=self.args.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def _write_checkpoint(self, folder: Path) -> None:
        """All of a checkpoint into ``folder``: the model as transformers reads it, optimizer, schedule, random numbers, data."""
        self.store_flos()
        self._write_tensors(folder)
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.is_world_process_zero():
            self._note_callbacks()
            self.state.save_to_json(str(folder / "trainer_state.json"))
            (folder / STATE).write_text(json.dumps(self._own_state(), indent=1))

    def _write_tensors(self, folder: Path) -> None:
        """Weights, optimizer and schedule."""
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))

    def export(self, folder: Path, dtype: str) -> None:
        """Write the finished model in the style transformers reads."""
        if self.is_world_process_zero():
            save_weights(self.model.zamba, folder, dtype=dtype)

    def _note_callbacks(self) -> None:
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()

    def _own_state(self) -> dict:
        return {
            "step": self.state.global_step,
            "tokens": self.tokens_seen,
            "loss_since_log": float(self._tr_loss),
            "last_logged": self._globalstep_last_logged,
            "guard": self.guard.counted(),
            "bad_losses_logged": self._bad_losses_logged,
            "extra": self.extra_state(),
        }

    def extra_state(self) -> dict:
        """What else a checkpoint remembers, as JSON: the place in the data."""
        return {}

    def load_extra_state(self, state: dict) -> None:
        """Take back what ``extra_state`` gave."""

    # going on

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self._read_checkpoint(Path(resume_from_checkpoint))

    def _read_checkpoint(self, folder: Path) -> None:
        """Weights and what is remembered beside them; Trainer reads optimizer, schedule and random numbers itself."""
        self._restore_weights(folder)
        self.load_extra_state(self._remembered(folder)["extra"])

    def _restore_weights(self, folder: Path) -> None:
        if (folder / checkpoints.PIECES).is_dir():
            raise ZambaError(f"{folder} is in pieces: go on with --set scale.shard=fsdp, on any number of devices")
        for name in ZIPPED:  # without them Trainer would begin them anew, and say nothing
            if not is_zipfile(folder / name):
                raise _damaged(folder, name)
        if not restore_weights(self.model, folder):
            super()._load_from_checkpoint(str(folder))

    @staticmethod
    def _remembered(folder: Path) -> dict:
        path = folder / STATE
        if not path.is_file():
            raise ZambaError(f"{folder} lacks {STATE}: it is no checkpoint of zamba-lm train, or it is damaged; move it away")
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise _damaged(folder, STATE) from error

    def _begin(self) -> None:
        """Called when training begins: counters as they were in the checkpoint."""
        self._bad_losses_logged = 0
        if self._resume_from:
            saved = self._remembered(self._resume_from)
            self.tokens_seen, self._bad_losses_logged = saved["tokens"], saved["bad_losses_logged"]
            self._tr_loss += saved["loss_since_log"]
            self._globalstep_last_logged = saved["last_logged"]
            self.guard.load(saved["guard"])
        self.pace.begin(self.state.global_step, self.tokens_seen, self.state.total_flos)

    def get_batch_samples(self, *args, **kwargs):
        """After the first batch of a resumed run, which makes the loader draw random numbers, they are as they were."""
        found = super().get_batch_samples(*args, **kwargs)
        if self._resume_from and self.state.global_step == checkpoints.step_of(self._resume_from):
            self._load_rng_state(str(self._resume_from))
        return found
