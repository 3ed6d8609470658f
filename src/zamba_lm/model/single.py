"""One token of one sequence on a CPU in as few torch calls as it takes: at this size a call costs more than its arithmetic.

``Single`` does what ``Zamba.forward`` does, with the same weights and the same memory. What lies between two products is float32,
the residual stream too, so fewer numbers are rounded.
"""

from typing import cast

import torch
from torch import Tensor, nn

from zamba_lm.model.kv import Stretches
from zamba_lm.model.mamba2 import Mamba2
from zamba_lm.model.parts import Linear, Norm
from zamba_lm.model.shared import Adapter, SharedBlock
from zamba_lm.model.single_layer import Call, Mixer, Rms, product
from zamba_lm.model.state import State
from zamba_lm.model.zamba import Layer, Zamba
from zamba_lm.ops.dispatch import forced
from zamba_lm.ops.rope import angles

KNOWN = {Zamba, Layer, Mamba2, SharedBlock, Linear, Norm, Adapter, nn.Embedding, nn.ModuleList, nn.ModuleDict}


class Single:
    """The next tokens of the one sequence in ``state``. Made by ``of`` when it begins to decode alone, and made anew after any
    other pass: until then the model's modules and parameters are taken to be those they were.
    """

    @torch.inference_mode()
    def __init__(self, model: Zamba, state: State):
        self.model, self.state, self.version = model, state, state.version
        self.hooks = [hooks for m in model.modules() for hooks in (m._forward_pre_hooks, m._forward_hooks)]
        self.both_1E, self.into_D = torch.zeros(1, 2 * model.config.d_model), torch.zeros(model.config.d_model)
        self.x_D, self.x0_D = self.both_1E[0].chunk(2)
        self.layers = [self._layer(cast(Layer, layer)) for layer in model.layers]
        self.norm = Rms(self.x_D, model.norm.weight, model.norm.eps)
        self.head = product(*(model.head or (model.embedding.weight, None)))

    def _layer(self, layer: Layer) -> tuple[Call | None, Mixer]:
        memory, (call, at) = self.state.layer(layer.plan.layer), (layer.plan.call, layer.plan.block)
        if call is None or at is None:
            return None, Mixer(layer, self.x_D, memory)
        store_2NTd = self.state.whole.kv.stores[call][:, self.state.start]
        called = Call(cast(SharedBlock, self.model.blocks[at]), layer, self.both_1E, self.into_D, store_2NTd, self.model.dtype)
        return called, Mixer(layer, self.into_D, memory)

    @classmethod
    def of(cls, model: Zamba, state: State) -> "Single | None":
        """For a Zamba2 made ready on a CPU, of its own parts, with no op forced and nobody listening by hooks; else None."""
        if model.device.type != "cpu" or any(getattr(layer.mixer, "frozen", None) is None for layer in model.layers):
            return None
        if not {type(module) for module in model.modules()} <= KNOWN or torch.is_autocast_enabled("cpu"):
            return None
        if len(state) != 1 or state.ssm.dtype != torch.float32 or type(state.whole.kv) is not Stretches:
            return None
        single = cls(model, state)
        return single if single.serves(state) else None

    def serves(self, state: State) -> bool:
        """Whether this is still of use: the same memory where it was, no hooks, no op forced."""
        return state is self.state and state.version == self.version and not any(self.hooks) and not forced()

    @torch.inference_mode()
    def logits(self, token: int) -> Tensor:
        """Float32 (1, V) after ``token``, which the state then has read; room for it is there already (``State.reserve``)."""
        past, c = self.state.lengths[0], self.model.config
        self.x0_D.copy_(self.model.embedding.weight[token])
        self.x_D.copy_(self.x0_D)
        turns = angles(torch.tensor([past]), c.head_dim, c.rope_base) if c.rope_theta and c.n_calls else None
        for call, mixer in self.layers:
            if call is not None:
                call(past, turns)
            self.x_D.add_(mixer())
        self.state.whole.ages[self.state.start] += 1
        return self.head(self.norm()).float()
