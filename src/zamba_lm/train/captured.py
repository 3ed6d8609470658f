"""Forward and backward of one shape as a CUDA graph: for hosts that launch kernels more slowly than the GPU runs them.

    step = Captured(model, (4096,), autocast=torch.bfloat16)
    loss = step(ids_T, targets_T); clip(optimizer, 1.0); optimizer.step()

A pass of Zamba2-2.7B over 4096 tokens is some 2500 kernels. Where documents of other lengths come with every step, as in packed
rows, nothing can be captured; such steps are larger, and the host keeps up.
"""

from collections.abc import Sequence

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.xent import xent

WARM_UP = 2  # passes before the capture: kernels are compiled, tables of the packing are on the device


class Captured:
    """``step(ids_T, targets_T)``: the mean loss, float32 on the device, until the next call; gradients in ``p.grad``, overwritten
    by every call.

    ``lengths``: of the documents of every step. ``autocast``: a dtype, or None for products in the weights' own. The graph keeps
    all memory of a pass. Parameters must stay where they are, and what requires a gradient too. Raises ZambaError without a GPU,
    and for a step of another size.
    """

    def __init__(self, model: Zamba, lengths: Sequence[int], *, autocast: torch.dtype | None = None):
        if model.device.type != "cuda":
            raise ZambaError(f"a pass is captured on a GPU, but the model is on {model.device}")
        self.model, self.packing, self.autocast = model, Packing(lengths), autocast
        self.ids_T = torch.zeros(self.packing.total, dtype=torch.long, device=model.device)
        self.targets_T = torch.zeros_like(self.ids_T)
        self.graph = torch.cuda.CUDAGraph()
        self.loss = self._capture()
        self.gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]

    def __call__(self, ids_T: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
        if ids_T.shape != self.ids_T.shape or targets_T.shape != self.ids_T.shape:
            sizes = f"{tuple(ids_T.shape)} ids and {tuple(targets_T.shape)} targets"
            raise ZambaError(f"the captured step takes {len(self.ids_T)} of each, not {sizes}; capture another")
        self.ids_T.copy_(ids_T, non_blocking=True)
        self.targets_T.copy_(targets_T, non_blocking=True)
        self.graph.replay()
        for p, gradient in self.gradients:  # an optimizer's zero_grad took them away
            p.grad = gradient
        return self.loss

    def _capture(self) -> torch.Tensor:
        stream = torch.cuda.Stream(self.model.device)
        stream.wait_stream(torch.cuda.current_stream(self.model.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._pass()
                self.model.zero_grad(set_to_none=True)
            with torch.cuda.graph(self.graph, stream=stream):
                loss = self._pass()
        torch.cuda.current_stream(self.model.device).wait_stream(stream)
        return loss

    def _pass(self) -> torch.Tensor:
        with torch.autocast("cuda", self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            hidden_TD = self.model.hidden(Batch(self.ids_T, self.packing))
            total = xent(hidden_TD, self.model.embedding.weight, self.targets_T)
        loss = total / (self.targets_T >= 0).sum().clamp(min=1)
        loss.backward()
        return loss.detach()
