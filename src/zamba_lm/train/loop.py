"""A plain training loop on one device: forward, loss, backward, two optimizers, a schedule."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.dispatch import OPS, force
from zamba_lm.ops.xent import xent
from zamba_lm.train.stream import Mixture


@dataclass(frozen=True)
class Stage:
    """A share of the run with its own mixture of sources."""

    name: str
    share: float
    mix: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """All numbers of a run. Learning rates are peaks; from progress ``decay_from`` on they fall linearly to zero."""

    stages: tuple[Stage, ...]
    tokens: int
    row: int = 2048
    batch: int = 64
    matrix_lr: float = 3e-3
    other_lr: float = 3e-3
    warmup: float = 0.01
    decay_from: float = 0.4
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    compile: bool = True
    log_every: int = 20
    save_every: int = 500
    patterns: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.row * self.batch))

    def rate(self, progress: float) -> float:
        """Share of the peak learning rate at ``progress`` in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return min(1.0, (1 - progress) / (1 - self.decay_from))

    def stage(self, progress: float) -> Stage:
        end = 0.0
        for stage in self.stages:
            end += stage.share
            if progress < end:
                return stage
        return self.stages[-1]


def optimizers(model: Zamba, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers and blocks, AdamW for the embedding and (without decay) for all vectors."""
    matrices, vectors = [], []
    for name, p in model.named_parameters():
        if name.startswith("embedding"):
            continue
        (matrices if p.dim() == 2 and not name.endswith("conv_weight") else vectors).append(p)
    adam = torch.optim.AdamW(
        [{"params": [model.embedding.weight], "weight_decay": plan.weight_decay / 10}, {"params": vectors, "weight_decay": 0.0}],
        lr=plan.other_lr, betas=(0.9, 0.95), eps=1e-8, fused=model.device.type == "cuda",
    )  # fmt: skip
    muon = torch.optim.Muon(
        matrices, lr=plan.matrix_lr, weight_decay=plan.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for optimizer in (adam, muon):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [adam, muon]


def train(model: Zamba, data: Mixture, plan: Plan, *, out: Path, on_log: Callable[[dict], None] | None = None) -> list[dict]:
    """Train in place; returns the log. Writes ``out/log.jsonl`` and ``out/checkpoint.pt``, from which a run that was cut off goes
    on.

    Stops with ZambaError when the loss is no longer finite.
    """
    device = model.device
    opts, log, start, seen = optimizers(model, plan), [], time.monotonic(), 0
    out.mkdir(parents=True, exist_ok=True)
    first_step = _resume(out / "checkpoint.pt", model, opts)
    compile_parts(model, plan)
    with (out / "log.jsonl").open("a") as journal, force(**_ops(plan)):
        for step in range(plan.steps):
            progress = step / plan.steps
            stage = plan.stage(progress)
            ids, targets = data.batch(stage.mix, plan.batch)
            if step < first_step:
                continue
            loss, norm = _step(model, opts, ids, targets, plan, progress)
            seen += ids.numel()
            if (step + 1) % plan.save_every == 0:
                _save(out / "checkpoint.pt", model, opts, step + 1)
            if step % plan.log_every == 0 or step == plan.steps - 1:
                entry = _entry(step, stage, loss, norm, seen, time.monotonic() - start, plan, device)
                log.append(entry)
                print(json.dumps(entry), file=journal, flush=True)
                if on_log:
                    on_log(entry)
                data.look()
    return log


def _step(model, opts, ids, targets, plan, progress):
    for optimizer in opts:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * plan.rate(progress)
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden_TD = model.hidden(Batch.rectangle(ids))
        total = xent(hidden_TD, model.embedding.weight, targets.flatten())
    loss = total / (targets >= 0).sum().clamp(min=1)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
    for optimizer in opts:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm


def _save(path: Path, model: Zamba, opts, step: int) -> None:
    beside = path.with_suffix(".new")
    torch.save({"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in opts]}, beside)
    beside.replace(path)


def _resume(path: Path, model: Zamba, opts) -> int:
    """The step to go on from: 0 without a checkpoint."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=model.device, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(opts, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["step"]


def _entry(step, stage, loss, norm, seen, seconds, plan, device) -> dict:
    if not torch.isfinite(loss):
        raise ZambaError(
            f"the loss is {float(loss)} at step {step}; lower matrix_lr ({plan.matrix_lr}) or other_lr ({plan.other_lr})"
        )
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {
        "step": step, "of": plan.steps, "stage": stage.name, "loss": round(float(loss), 4), "grad_norm": round(float(norm), 3),
        "lr": round(plan.rate(step / plan.steps), 4), "tokens": seen, "seconds": round(seconds, 1),
        "tokens_per_s": round(seen / seconds), "peak_gib": round(peak, 1),
    }  # fmt: skip


def _ops(plan: Plan) -> dict[str, str]:
    """torch.compile makes kernels of its own, and makes them of the plain definitions."""
    return {op: "compiled" if op == "xent" else "reference" for op in OPS} if plan.compile else {}


def compile_parts(model: Zamba, plan: Plan) -> None:
    """Compile a plain layer, a hybrid layer and a block once each; every layer shares the result."""
    if not plan.compile:
        return
    for part in (*model.layers, *model.blocks):
        part.compile(dynamic=False)


def show(entry: dict) -> None:
    """One line of progress on standard error."""
    left = (entry["of"] - entry["step"]) * entry["seconds"] / max(1, entry["step"])
    print(f"step {entry['step']}/{entry['of']} {entry['stage']} loss {entry['loss']:.4f} |g| {entry['grad_norm']:.2f} "
          f"{entry['tokens_per_s'] / 1e3:.0f}k tok/s {entry['peak_gib']} GiB, {left:.0f} s left",
          file=sys.stderr, flush=True)  # fmt: skip
