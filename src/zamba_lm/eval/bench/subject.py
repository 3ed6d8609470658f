"""The model that is measured: a published shape with random weights, or a checkpoint, whole or its first layers."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench import costs
from zamba_lm.eval.bench.clock import free_bytes
from zamba_lm.hub import EMBEDDED, resolve
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.dtypes import as_dtype, dtype_name
from zamba_lm.model.load import load_model, read_config
from zamba_lm.model.presets import preset as published
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.gpu import wake

SLACK = 1.1  # activations and what the allocator rounds up


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Which model, and how: exactly one of ``preset`` (random weights, nothing to download) and ``model`` (a checkpoint)."""

    preset: str | None = None
    model: str | None = None
    layers: int | None = None  # only the first so many
    device: torch.device
    dtype: str = "bfloat16"
    seed: int = 0

    @property
    def name(self) -> str:
        return (self.preset or self.model or "").lower() + (f" (first {self.layers} layers)" if self.layers else "")

    def config(self) -> ZambaConfig:
        """ZambaError for an unknown preset or checkpoint, and for more layers than there are."""
        whole = published(self.preset) if self.preset else read_config(resolve(self.model or EMBEDDED))
        return replace(first_layers(whole, self.layers), dtype=self.dtype)

    def build(self) -> Zamba:
        """The model on its device. Random weights are drawn there, by the published initialisation."""
        if self.model:
            return shortened(load_model(self.model, device=self.device, dtype=self.dtype), self.layers)
        wake(self.device)
        model = Zamba(self.config(), device=self.device, dtype=as_dtype(self.dtype))
        return model.init_weights(self.seed).requires_grad_(False).eval()


def choose(preset: str | None, random: bool, model: str | None, layers: int | None, device, dtype: str, seed: int) -> Subject:
    """The subject that these options name. ZambaError for a combination that names none, or two."""
    if preset and model:
        raise ZambaError(f"--preset {preset} and --model {model} both name a model; give one of them")
    if preset and not random:
        raise ZambaError(f"--preset {preset} is a shape without weights: add --random, or name a checkpoint with --model")
    if random and not preset:
        raise ZambaError("--random draws weights for a published shape: name one, such as --preset zamba2-2.7b")
    name = dtype_name(as_dtype(dtype))
    return Subject(
        preset=preset and preset.lower(),
        model=None if preset else model or EMBEDDED,
        layers=layers,
        device=device,
        dtype=name,
        seed=seed,
    )


def first_layers(c: ZambaConfig, layers: int | None) -> ZambaConfig:
    """The same config with fewer layers, and no more shared blocks than they call."""
    if layers is None:
        return c
    if not 1 <= layers <= c.n_layers:
        raise ZambaError(f"--layers {layers}: the model has {c.n_layers}, give a number from 1 to {c.n_layers}")
    hybrid = tuple(layer for layer in c.hybrid_layers if layer < layers)
    return replace(c, n_layers=layers, hybrid_layers=hybrid, n_blocks=max(1, min(c.n_blocks, len(hybrid))))


def shortened(model: Zamba, layers: int | None) -> Zamba:
    """Drop all but the first layers, in place."""
    model.config = first_layers(model.config, layers)
    model.layers = nn.ModuleList(list(model.layers)[: model.config.n_layers])
    model.blocks = nn.ModuleList(list(model.blocks)[: model.config.n_blocks if model.config.n_calls else 0])
    return model


def require_room(c: ZambaConfig, device: torch.device, dtype: str, batches, contexts, *, training: bool = False) -> None:
    """ZambaError that names the sizes when the largest case cannot fit on the device; nothing is allocated."""
    free = free_bytes(device)
    if free is None:
        return
    batch, context = max(batches), max(contexts)
    need = SLACK * (costs.held(c, batch, context, dtype) + (c.weight_bytes(dtype) if training else 0))
    if need <= free:
        return
    what = "weights and gradients" if training else f"weights and the state of {batch} x {context} tokens"
    raise ZambaError(
        f"{what} need {need / 1e9:.1f} GB in {dtype} ({c.weight_bytes(dtype) / 1e9:.1f} GB are weights), "
        f"and {device} has {free / 1e9:.1f} GB free; a smaller --batch or --context, or --layers, needs less"
    )
