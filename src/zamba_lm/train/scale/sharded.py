"""Put before a trainer: ``Spreading`` trains a model that is spread over devices, ``Sharded`` writes checkpoints in pieces."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import SCHEDULER_NAME

from zamba_lm.errors import ZambaError
from zamba_lm.model.config_write import to_dict
from zamba_lm.model.dtypes import as_dtype
from zamba_lm.model.match import kept_dtype
from zamba_lm.train.optim import clip
from zamba_lm.train.recipes.base import Scale
from zamba_lm.train.scale import stored
from zamba_lm.train.scale.mesh import places_of
from zamba_lm.train.scale.pieces import whole
from zamba_lm.train.scale.shares import share_of
from zamba_lm.train.scale.units import Spread

GROUPS = "groups.pt"  # settings of the optimizer's groups


class Spreading:
    """A trainer whose model is spread over devices. With one process nothing is."""

    def __init__(self, *args: Any, scale: Scale, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.spread: Spread | None = None
        places = places_of(scale, self.args.device)
        if places is not None:
            self.readers, self._ranks = places.count, scale.tensor
            self.spread = Spread(self.model, places, bf16=self.args.bf16, keep=scale.keep)
            # autocast alone: what the model's processes exchange, they exchange by themselves
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.spread and self.accelerator.sync_gradients:
            self.spread.end_step()
        return loss

    def _clip_grad_norm(self, model):
        return clip(self._optimizer, self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None:
            grad_norm = clip(self._optimizer, float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def floating_point_ops(self, inputs) -> int:
        """A device's share of them."""
        return super().floating_point_ops(inputs) // (self._ranks if self.spread else 1)

    def evaluate(self, *args, **kwargs):
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            if self.spread:
                self.spread.let_go()

    def _by_source(self) -> dict[str, dict[str, float]]:
        """Every process measures every source, since each holds a part of the model only."""
        if not self.spread:
            return super()._by_source()
        return self.spread.through(lambda: {name: measure() for name, measure in self.held_out.items()})

    @property
    def _optimizer(self):
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it


class Sharded(Spreading):
    """Checkpoints are in pieces, the same for any number of processes, so that a run may go on with another."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.saving: stored.Saving | None = None
        self._beside_training = stored.quiet_group()

    # saving

    def _try_to_save(self, step: int) -> ZambaError | None:
        """Begin to save this step, when the one before is on the disk; at the end of a run wait for both."""
        failed = self.settle()
        failed = self._begin_to_save(step) or failed
        if step >= self.state.max_steps or self.stopped_by:
            failed = self.settle() or failed
        return failed

    def _begin_to_save(self, step: int) -> ZambaError | None:
        folder, failed = self._written_aside(step)
        if failed:
            self._take_away(folder)
            return failed
        tensors = stored.weights(self.model.zamba) | stored.moments(self.model.zamba, self._optimizer)
        self._saving_to = folder
        then, shares = partial(self._whole, step, folder), stored.shares(self.model.zamba)
        self.saving = stored.Saving(tensors, folder, self._beside_training, then, shares)
        return None

    def _whole(self, step: int, folder: Path) -> ZambaError | None:
        """All pieces are there: the checkpoint gets its name."""
        return self._commit(step, folder) if self.is_world_process_zero() else None

    def settle(self) -> ZambaError | None:
        """Wait for what is being saved; what went wrong with it, the same in every process."""
        if self.saving is None:
            return None
        failed, self.saving = self.saving.wait(), None
        if self._any_process(failed is not None):
            self._take_away(self._saving_to)
            return failed or ZambaError(f"another process could not save {self._saving_to.name.removeprefix('.saving-')}")
        return None

    def _take_away(self, folder: Path) -> None:
        if self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _write_tensors(self, folder: Path) -> None:
        """What is small; the pieces follow in the background."""
        if self.is_world_process_zero():
            config = to_dict(stored.whole_config(self.model.zamba), "hf")
            (folder / "config.json").write_text(json.dumps(config, indent=2))
            if self.processing_class is not None:
                self.processing_class.save_pretrained(str(folder))
            torch.save(stored.settings(self._optimizer), folder / GROUPS)
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    # going on

    def _restore_weights(self, folder: Path) -> None:
        if not stored.in_pieces(folder):
            raise ZambaError(
                f"{folder} was written by a run that was not sharded; go on with --set scale.shard=none, "
                f"or begin a run from it with --set start={folder}"
            )
        stored.read_weights(self.model.zamba, folder, group=self._beside_training)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        stored.read_moments(self.model.zamba, self._optimizer, folder, group=self._beside_training)
        for group, saved in zip(self._optimizer.param_groups, torch.load(folder / GROUPS, weights_only=True), strict=True):
            group |= {key: value for key, value in saved.items() if key != "fused"}
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    # the finished model

    def export(self, folder: Path, dtype: str) -> None:
        """The whole model in the style transformers reads, written by the first process."""
        zamba, wanted = self.model.zamba, as_dtype(dtype)
        gathered = {}
        for name, p in zamba.named_parameters():
            one, share = whole(p), share_of(p)
            one = share.gathered(name, one, zamba.config) if share else one
            if self.is_world_process_zero():
                gathered[name] = one.to("cpu", kept_dtype(name, p.dtype, wanted))
        if self.is_world_process_zero():
            stored.write_whole(stored.whole_config(zamba), gathered, folder, wanted)
        self.accelerator.wait_for_everyone()
