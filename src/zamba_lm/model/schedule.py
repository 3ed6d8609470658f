"""Which layer makes which call to which shared block: said here and nowhere else."""

from dataclasses import dataclass

from zamba_lm.model.config import ZambaConfig


@dataclass(frozen=True)
class LayerPlan:
    """One layer's place in the model. ``call`` and ``block`` are None for a layer that calls no shared block."""

    layer: int
    call: int | None = None
    block: int | None = None

    @property
    def hybrid(self) -> bool:
        return self.call is not None


def schedule(config: ZambaConfig) -> tuple[LayerPlan, ...]:
    """One plan per layer, in order. Blocks alternate by **call**, never by layer number."""
    call_of = {layer: call for call, layer in enumerate(config.hybrid_layers)}
    return tuple(
        LayerPlan(layer, call_of[layer], call_of[layer] % config.n_blocks) if layer in call_of else LayerPlan(layer)
        for layer in range(config.n_layers)
    )
