"""Zamba: the whole model in one screen."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import torch
from torch import nn

from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.init import init_weights
from zamba_lm.model.mamba1 import Mamba1
from zamba_lm.model.mamba2 import Mamba2
from zamba_lm.model.parts import Linear, Norm
from zamba_lm.model.recompute import again, checked
from zamba_lm.model.schedule import LayerPlan, schedule
from zamba_lm.model.shared import Call, SharedBlock, call_adapters
from zamba_lm.model.state import State, StateLike
from zamba_lm.ops.linear import Normed, linear, one_pass, summed
from zamba_lm.ops.rope import angles

MIXERS = {"zamba": Mamba1, "zamba2": Mamba2}
Watch = Callable[[torch.Tensor], torch.Tensor]


class Layer(nn.Module):
    """A mixer with its norm; a hybrid layer also owns the adapters and the link of its call."""

    def __init__(self, c: ZambaConfig, plan: LayerPlan, *, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.plan = plan
        self.recomputed: frozenset[str] = frozenset()  # see Zamba.recompute
        self.norm = Norm(c.d_model, c.norm_eps, **factory)
        self.mixer = MIXERS[c.family](c, **factory)
        if plan.hybrid:
            self.link = Linear(c.d_model, c.d_model, **factory)
            self.adapters = call_adapters(c, **factory)
            self.merged: dict[str, torch.Tensor] = {}  # weights that hold the adapters already, see model/merge.py

    @property
    def call(self) -> Call:
        return Call(self.adapters, self.merged, self.link)

    def forward(self, x_TD, x0_TD, packing, turns=None, block: SharedBlock | None = None, memory=None, cache=None):
        """block: the shared block that this layer calls, or None; what it returns is the mixer's input only, never the residual.
        x0_TD: the embedding output, turns: RoPE tables, memory and cache: what the mixer and the call continue from."""
        into_TD = x_TD if block is None else self._called(block, x_TD, x0_TD, packing, turns, cache)
        if "mixers" in self.recomputed and torch.is_grad_enabled():
            return again(self.mixer, self.mixer, into_TD, self.norm, packing, memory, x_TD)
        return self.mixer(into_TD, self.norm, packing, memory, residual_TD=x_TD)

    def _called(self, block: SharedBlock, x_TD, x0_TD, packing, turns, cache):
        if "blocks" in self.recomputed and torch.is_grad_enabled():
            return again(block, block, x_TD, x0_TD, self.call, packing, turns, cache)
        return block(x_TD, x0_TD, self.call, packing, turns, cache)


class Zamba(nn.Module):
    """A Zamba or Zamba2 language model on one device.

    Parameters are uninitialised until ``init_weights`` or ``load_weights``. Without a state a pass is differentiable and starts
    every sequence afresh; with one it continues it in place.
    """

    def __init__(self, config: ZambaConfig, *, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.embedding = nn.Embedding(
            config.vocab_size, config.d_model, _weight=torch.empty(config.vocab_size, config.d_model, **factory)
        )
        self.blocks = nn.ModuleList(SharedBlock(config, **factory) for _ in range(config.n_blocks if config.n_calls else 0))
        self.layers = nn.ModuleList(Layer(config, plan, **factory) for plan in schedule(config))
        self.norm = Norm(config.d_model, config.norm_eps, **factory)
        self.head: tuple[torch.Tensor, torch.Tensor | None] | None = None  # the embedding packed, see model/pack.py

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def forward(self, batch: Batch, state: StateLike | None = None, *, last_only: bool = False) -> torch.Tensor:
        """Logits (T, V), or (S, V) of each sequence's last token with ``last_only``; float32.

        Sequence s of the batch continues slot s of ``state``, which is updated in place. Raises ZambaError for token ids outside
        the vocabulary (when they can be checked without waiting for a device) and for a state with another number of slots.
        """
        return self.scores(batch, state, last_only=last_only).float()

    def scores(self, batch: Batch, state: StateLike | None = None, *, last_only: bool = False) -> torch.Tensor:
        """The logits of ``forward`` in the model's dtype, as the head computes them."""
        x_TD = self._run(batch, state)
        if last_only and batch.packing.total != len(batch):
            x_TD = summed(x_TD)[batch.packing.last(x_TD.device)]
        return self._score(x_TD)

    def _score(self, x_TD: torch.Tensor) -> torch.Tensor:
        return linear(x_TD, *(self.head or (self.embedding.weight, None)), norm=Normed(self.norm.weight, self.norm.eps))

    def hidden(self, batch: Batch, state: StateLike | None = None, *, watch: Watch | None = None) -> torch.Tensor:
        """Normed hidden states (T, D) that the head reads. ``watch`` is called with what enters each layer, (T, D), and returns
        what enters in its place."""
        return self.norm(summed(self._run(batch, state, watch)))

    def recompute(self, *parts: str, layers: Iterable[int] | None = None) -> "Zamba":
        """From now on, keep no inside of these parts for backward passes, and compute it there again; returns the model.

        ``parts``: "layers" (a layer with the call it makes, the most memory saved), or "blocks" (calls of shared blocks) and
        "mixers"; none: keep everything. ``layers``: numbers of the layers meant, the others keep everything; None: all. Gradients
        are those of a model that keeps all. ZambaError for another part or a layer that is not there.
        """
        wanted, chosen = checked(parts), set(range(len(self.layers)) if layers is None else layers)
        if wrong := sorted(chosen - set(range(len(self.layers)))):
            raise ZambaError(f"cannot recompute layer {wrong[0]} of {len(self.layers)}, counted from 0")
        for at, layer in enumerate(cast(Iterable[Layer], self.layers)):
            layer.recomputed = wanted if at in chosen else frozenset()
        return self

    def _run(self, batch: Batch, state: StateLike | None, watch: Watch | None = None) -> torch.Tensor:
        """Hidden states (T, D) behind the last layer. With a state nothing is differentiable."""
        self._check(batch, state)
        with torch.set_grad_enabled(torch.is_grad_enabled() and state is None), one_pass():
            if state is not None:
                state.begin(batch.packing)
            x_TD = self._layers(batch, state, watch)
            if state is not None:
                state.advance(batch.packing)
            return x_TD

    def _layers(self, batch: Batch, state: StateLike | None, watch: Watch | None) -> torch.Tensor:
        packing, turns = batch.packing, self._angles(batch.packing, state)
        x_TD, x0_TD = self._embedded(batch)
        overwritten = state is not None and packing.total > 1  # mixers then add to their residual in its place
        if overwritten:
            x_TD = x0_TD.clone()
        for layer in cast(Iterable[Layer], self.layers):
            if watch is not None:
                x_TD = watch(summed(x_TD)).clone() if overwritten else watch(x_TD)
            if "layers" in layer.recomputed and torch.is_grad_enabled():
                x_TD = again(layer, self._layer, layer, x_TD, x0_TD, packing, turns, state)
            else:
                x_TD = self._layer(layer, x_TD, x0_TD, packing, turns, state)
        return x_TD

    def _embedded(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the first layer, and what every call of a shared block reads of it: the same."""
        x_TD = _narrowed(self.embedding(batch.ids_T) if batch.embedded_TD is None else batch.embedded_TD)
        return x_TD, x_TD

    def _layer(self, layer: Layer, x_TD, x0_TD, packing, turns, state: StateLike | None) -> torch.Tensor:
        """One layer, with the call it makes."""
        memory = None if state is None else state.layer(layer.plan.layer)
        call, at = layer.plan.call, layer.plan.block
        if call is None or at is None:
            return layer(x_TD, x0_TD, packing, turns, memory=memory)
        cache = None if state is None else state.cache(call)
        return layer(x_TD, x0_TD, packing, turns, cast(SharedBlock, self.blocks[at]), memory, cache)

    def logits(self, ids_BT: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """Logits (B, T, V) float32 for B sequences of T new tokens; ``state`` (B slots) is continued and updated in place."""
        return self(Batch.rectangle(torch.as_tensor(ids_BT, device=self.device)), state).unflatten(0, tuple(ids_BT.shape))

    def new_state(self, batch_size: int, *, ssm_dtype: torch.dtype = torch.float32) -> State:
        """An empty state for ``batch_size`` sequences, on the model's device. ``ssm_dtype``: bfloat16 halves the memory of SSM
        states and the time to read and write them, at some loss of precision with every token."""
        return State(self.config, batch_size, device=self.device, dtype=self.dtype, ssm_dtype=ssm_dtype)

    def init_weights(self, seed: int = 0) -> "Zamba":
        """The published initialisation, reproducible by seed on one device type; returns the model."""
        init_weights(self, seed)
        return self

    def save(self, folder: str | Path, *, dtype=None) -> None:
        """Write config.json and safetensors in the style transformers reads; nothing half-written is left behind."""
        from zamba_lm.model.weights import save_weights

        save_weights(self, Path(folder), dtype=dtype)

    def _angles(self, packing, state):
        """RoPE tables of this pass's tokens, or None for a model without RoPE."""
        if not (self.config.rope_theta and self.config.n_calls):
            return None
        positions_T = packing.positions(self.device) if state is None else state.positions(packing)
        return angles(positions_T, self.config.head_dim, self.config.rope_base)

    def _check(self, batch: Batch, state: StateLike | None) -> None:
        if state is not None and len(state) != len(batch):
            raise ZambaError(f"the state has {len(state)} slots but the batch {len(batch)} sequences; they must be equal")
        if batch.embedded_TD is not None:
            return
        ids = batch.ids_T
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = torch.aminmax(ids)
            if low < 0 or high >= self.config.vocab_size:
                bad = low if low < 0 else high
                raise ZambaError(
                    f"token id {int(bad)} is outside the vocabulary of {self.config.vocab_size}; did another tokenizer make it?"
                )


def _narrowed(x_TD: torch.Tensor) -> torch.Tensor:
    """The residual stream's beginning, in autocast's dtype under autocast (docs/numerics.md says why)."""
    kind = x_TD.device.type
    return x_TD.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x_TD
