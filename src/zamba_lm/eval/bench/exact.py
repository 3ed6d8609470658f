"""The same function in float64: the reference implementations, with everything they do in float32 widened."""

from contextlib import ExitStack, contextmanager

import torch
from torch.overrides import TorchFunctionMode

from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench.clock import free_bytes
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.dispatch import OPS, force
from zamba_lm.ops.scan import reference as scan_reference


class Widened(TorchFunctionMode):
    """Whatever asks for float32 gets float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = [torch.float64 if a is torch.float32 else a for a in args]
        return func(*wide, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


@contextmanager
def exact(dtype: torch.dtype = torch.float64):
    """Inside, models of ``dtype`` run on reference implementations only, in float64 or in plain float32."""
    with ExitStack() as stack:
        stack.enter_context(force(**dict.fromkeys(OPS, "reference")))
        if dtype == torch.float64:
            stack.enter_context(_without_checkpoints())
            stack.enter_context(Widened())
        yield


@contextmanager
def _without_checkpoints():
    """What a backward pass computes again it computes where no mode of ours reaches: so nothing is computed again."""
    before = scan_reference.checkpoint
    scan_reference.checkpoint = lambda run, *args, use_reentrant, preserve_rng_state: run(*args)
    try:
        yield
    finally:
        scan_reference.checkpoint = before


def exact_copy(model: Zamba) -> Zamba:
    """The model in float64 or, where there is no room for that, in float32; ZambaError where there is room for neither."""
    free = free_bytes(model.device)
    for dtype in (torch.float64, torch.float32):
        need = model.config.weight_bytes("float32") * (2 if dtype == torch.float64 else 1)
        if free is None or need * 1.2 <= free:
            copy = Zamba(model.config, device=model.device, dtype=dtype)
            copy.load_state_dict(model.state_dict())
            return copy.requires_grad_(False)
    raise ZambaError(f"no room for the exact pass: {need / 1e9:.1f} GB, {(free or 0) / 1e9:.1f} GB are free")
