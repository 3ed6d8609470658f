"""One pass: from the arguments of transformers to packed sequences, through the model, with or without a cache."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from zamba_lm.errors import ZambaError
from zamba_lm.hf.cache import ZambaCache
from zamba_lm.hf.layout import Layout, cumulative, layout
from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Watch, Zamba
from zamba_lm.ops.dispatch import OPS, force
from zamba_lm.ops.packing import Packing


@dataclass(frozen=True)
class Read:
    """What a pass gives: normed hidden states (N, D) of the tokens that ``layout`` says, and (B, T, D) of what entered each layer
    where that was asked for."""

    layout: Layout
    hidden_ND: torch.Tensor
    seen: list[torch.Tensor]
    cache: ZambaCache | None


class Reading:
    """The passes of our models."""

    zamba: Zamba
    config: Any

    def read(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        keep: int | torch.Tensor | None = None,
        watch: bool = False,
        **others: Any,
    ) -> Read:
        """Run the model over ids (B, T) or embeddings (B, T, D). ``keep``: see ``Layout.columns``; ``watch``: collect what enters
        each layer. ``others``: arguments of transformers that may be absent, None or False, and ``cu_seq_lens_q``."""
        x = self._input(input_ids, inputs_embeds)
        lengths = _lengths(lengths, others)
        _refuse(others)
        shape = (x.shape[0], x.shape[1])
        with self._kernels():
            where = layout(shape, mask=attention_mask, position_ids=position_ids, lengths=lengths)
            cache = self._cache(past_key_values, use_cache, where)
            if cache is None:
                return self._stateless(x, where, watch)
            mask = None if attention_mask is None else attention_mask[:, attention_mask.shape[1] - shape[1] :]
            return self._with_cache(x, mask, cache, where, None if watch else keep, watch)

    def _input(self, input_ids, inputs_embeds) -> torch.Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ZambaError("give either input_ids or inputs_embeds, not both and not neither")
        x = input_ids if inputs_embeds is None else inputs_embeds
        want = 2 if inputs_embeds is None else 3
        if x.dim() != want:
            shape = "input_ids (batch, tokens)" if want == 2 else "inputs_embeds (batch, tokens, hidden size)"
            raise ZambaError(f"the input has shape {tuple(x.shape)}, expected {shape}")
        return x

    def _kernels(self):
        """use_mamba_kernels=False in the config asks for the plain definitions."""
        if getattr(self.config, "use_mamba_kernels", True) is not False:
            return nullcontext()
        plain = [op.name for op in OPS.values() if any(one.name == "reference" for one in op.implementations)]
        return force(**dict.fromkeys(plain, "reference"))

    def _cache(self, given: Any, use_cache: bool | None, where: Layout) -> ZambaCache | None:
        """The cache of this pass. Where nobody asked there is none if gradients are wanted: a pass with a state has none."""
        wanted = use_cache if use_cache is not None else getattr(self.config, "use_cache", True) and not torch.is_grad_enabled()
        if given is None and not wanted:
            return None
        if isinstance(given, ZambaCache) or given is None:
            cache = ZambaCache() if given is None else given
        elif given.get_seq_length() == 0:
            cache = ZambaCache()  # somebody's empty cache: ours goes back with the output
        else:
            raise ZambaError(f"past_key_values is a filled {type(given).__name__}; only a ZambaCache can be continued")
        if where.counts is None:
            if given is not None or use_cache:
                raise ZambaError("a cache holds one sequence a row, and this batch has several in one; pass use_cache=False")
            return None
        return cache

    def _stateless(self, x: torch.Tensor, where: Layout, watch: bool) -> Read:
        seen: list[torch.Tensor] = []
        hidden_ND = self.zamba.hidden(_batch(where.pack(x), where.lengths), watch=_watcher(where, seen) if watch else None)
        return Read(where, hidden_ND, seen, None)

    def _with_cache(self, x, mask, cache: ZambaCache, where: Layout, keep, watch: bool) -> Read:
        """Continue every row. Columns that were taken back are read again in front, and their results left out."""
        new = x.shape[1]
        x, mask = cache.take(self.zamba, x, mask)
        try:
            return self._read_on(x, mask, new, cache, where, keep, watch)
        except Exception:
            cache.untake(new)
            raise

    def _read_on(self, x, mask, new: int, cache: ZambaCache, where: Layout, keep, watch: bool) -> Read:
        """Read columns, of which the last ``new`` are new; first those that are certain, to keep the states behind them."""
        if first := cache.certain(keep if isinstance(keep, int) and keep else new):
            self._continue(x[:, :first], None if mask is None else mask[:, :first], cache, None, False)
            cache.advance(first, keep_states=True)
            x, mask = x[:, first:], None if mask is None else mask[:, first:]
        read = self._continue(x, mask, cache, where if x.shape[1] == new and not first else None, watch)
        cache.advance(x.shape[1])
        return replace(read, layout=read.layout.tail(min(new, x.shape[1]), x.device))

    def _continue(self, x, mask, cache: ZambaCache, where: Layout | None, watch: bool) -> Read:
        where = where or layout((x.shape[0], x.shape[1]), mask=mask)
        seen: list[torch.Tensor] = []
        assert cache.state is not None and where.counts is not None
        hidden, packed, at = [], where.pack(x), 0
        for start, stop in where.groups:  # one, unless some row is all padding
            counts = where.counts[start:stop]
            part = cache.state if stop - start == len(cache.state) else cache.state.slots(start, stop)
            batch = _batch(packed[at : at + sum(counts)], counts)
            hidden.append(self.zamba.hidden(batch, part, watch=_watcher(None, seen) if watch else None))
            at += sum(counts)
        if watch:
            each = len(self.zamba.layers)
            seen = [where.unpack(torch.cat(seen[layer::each])) for layer in range(each)]
        return Read(where, hidden[0] if len(hidden) == 1 else torch.cat(hidden), seen, cache)

    def encode(
        self, input_ids=None, attention_mask=None, *, inputs_embeds=None, output_hidden_states=None, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """Normed hidden states (B, T, D) as ``last_hidden_state``. Arguments as for ``read``."""
        watch = self.wants_hidden_states(output_hidden_states)
        read = self.read(input_ids, inputs_embeds, attention_mask=attention_mask, watch=watch, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=read.layout.unpack(read.hidden_ND),
            past_key_values=read.cache,
            hidden_states=self.hidden_states(read) if watch else None,
        )

    def hidden_states(self, read: Read) -> tuple[torch.Tensor, ...]:
        """(B, T, D) each: the embedding, what left each layer but the last, the normed end."""
        columns = read.layout.shape[1]
        inside = (x_BTD if x_BTD.shape[1] == columns else x_BTD[:, -columns:] for x_BTD in read.seen)
        return (*inside, read.layout.unpack(read.hidden_ND))

    def wants_hidden_states(self, asked: bool | None) -> bool:
        return bool(getattr(self.config, "output_hidden_states", False) if asked is None else asked)


def _watcher(where: Layout | None, seen: list[torch.Tensor]) -> Watch:
    """Collects what enters layers, as rectangles of ``where``, by which the pass then goes on, so that they have gradients."""

    def watch(x_ND: torch.Tensor) -> torch.Tensor:
        seen.append(x_ND if where is None else where.unpack(x_ND))
        return x_ND if where is None else where.pack(seen[-1])

    return watch


def _batch(x_N: torch.Tensor, lengths: tuple[int, ...]) -> Batch:
    if x_N.is_floating_point():
        return Batch(torch.empty(0), Packing(lengths), x_N)
    return Batch(x_N.long(), Packing(lengths))


HARMLESS = ("return_dict", "cache_position", "max_length_q", "max_length_k", "is_causal", "seq_idx")
SWITCHES = ("output_attentions", "output_router_logits")


def _lengths(lengths, others: dict[str, Any]):
    """Lengths, from cumulative ones if those are given."""
    cu_seqlens, also = others.pop("cu_seq_lens_q", None), others.pop("cu_seq_lens_k", None)
    if cu_seqlens is None or lengths is not None:
        return lengths
    if also is not None and also is not cu_seqlens and len(also) != len(cu_seqlens):
        raise ZambaError(f"cu_seq_lens_q has {len(cu_seqlens)} entries and cu_seq_lens_k {len(also)}; they must agree")
    return cumulative(cu_seqlens)


def _refuse(others: dict[str, Any]) -> None:
    if others.get("output_attentions"):
        raise ZambaError("attention weights are never held as a whole here, so output_attentions=True cannot be had")
    for name, value in others.items():
        if name not in HARMLESS and not (name in SWITCHES and not value) and value is not None:
            raise ZambaError(f"unknown argument {name}={value!r}")
