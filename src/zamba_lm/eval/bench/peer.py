"""transformers' model on our weights: built on the spot by name mapping, its parameters views of ours where layouts allow.

Nothing is written to disk and nearly nothing is held twice. Where transformers clamps time steps and our config does not, it is
told not to: both sides compute the same function.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench.decoder import random_ids
from zamba_lm.model.names import pieces
from zamba_lm.model.zamba import Zamba

CLASSES = {"zamba": ("ZambaConfig", "ZambaForCausalLM"), "zamba2": ("Zamba2Config", "Zamba2ForCausalLM")}
KERNELS = ("mamba-ssm", "causal-conv1d")  # what transformers uses of others when they are installed
START = 64  # tokens really read before a long context is filled with random numbers


def build(model: Zamba) -> nn.Module:
    """Their model with our weights, in evaluation mode. ZambaError when it cannot be built."""
    transformers = _transformers()
    config_class, model_class = (getattr(transformers, name) for name in CLASSES[model.config.family])
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # their adapters of rank 0
            theirs = model_class(config_class.from_dict(model.config.to_hf()))
    except Exception as error:  # releases 5.5.4 to 5.14 cannot construct models of two shared blocks
        said = f"{type(error).__name__}: {error}"
        raise ZambaError(f"transformers {transformers.__version__} cannot build this model ({said}); 5.23 can") from error
    _share(model, theirs)
    _fill_buffers(theirs, model)
    for module in theirs.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = model.config.dt_limit
    return theirs.eval()


def describe(*, required: bool = False) -> dict:
    """Name and version of the peer, and of the kernels it finds: None for those that are not installed. ZambaError when it is
    ``required`` and cannot be imported."""
    if required:
        _transformers()
    kernels = {name: installed(name) for name in KERNELS}
    return {"name": "transformers", "version": installed("transformers"), "kernels": kernels}


def installed(name: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ZambaError(f"--against transformers: it cannot be imported ({error}); pip install 'zamba-lm[hf]'") from error
    transformers.logging.set_verbosity_error()
    return transformers


def _share(model: Zamba, theirs: nn.Module) -> None:
    """Give every parameter of theirs a view of ours, a copy where the order of rows differs."""
    ours = dict(model.named_parameters())
    for piece in pieces(model.config, "hf"):
        shared = nn.Parameter(piece.window(ours[piece.target].detach()).reshape(piece.shape), requires_grad=False)
        for name in piece.names:
            _put(theirs, name, shared)
    left = {name: parameter for name, parameter in theirs.named_parameters(remove_duplicate=False) if parameter.is_meta}
    for name in [name for name, parameter in left.items() if not parameter.numel()]:  # adapters of rank 0
        empty = torch.empty(left.pop(name).shape, device=model.device, dtype=model.dtype)
        _put(theirs, name, nn.Parameter(empty, requires_grad=False))
    if left:
        names = ", ".join([*left][:5])
        raise ZambaError(f"transformers {installed('transformers')} has parameters that nothing of ours fills: {names}")


def _put(theirs: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, last = name.split(".")
    try:
        module = theirs.get_submodule(".".join(path))
    except AttributeError as error:
        raise ZambaError(f"transformers {installed('transformers')} has no place for {name} ({error}); 5.23 has") from error
    setattr(module, last, parameter)


def _fill_buffers(theirs: nn.Module, model: Zamba) -> None:
    """RoPE frequencies, which they compute when a model is built on a real device. Long-context bases are the authors'."""
    c = model.config
    even = torch.arange(0, c.head_dim, 2, device=model.device, dtype=torch.float32)
    for module in theirs.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta and buffer.shape == even.shape:
                setattr(module, name, c.rope_base ** (-even / c.head_dim))
            elif buffer.is_meta:
                raise ZambaError(f"transformers {installed('transformers')} has a buffer {name} that nothing of ours fills")


class TheirDecoder:
    """Their model and cache, a greedy choice behind each pass: their ``generate`` without what it does in Python around it."""

    route = "transformers"

    def __init__(self, theirs: nn.Module, batch: int):
        self.theirs, self.batch = theirs, batch
        self.device = next(theirs.parameters()).device

    @torch.inference_mode()
    def start(self, ids_BT):
        self.clear()
        self._pass(ids_BT.to(self.device))

    @torch.inference_mode()
    def fill(self, context):
        self.start(random_ids(self.batch, START, self.theirs.config.vocab_size, seed=0))
        self.chosen = self.chosen[-1:]
        for layer in self.cache.layers:
            keys = getattr(layer, "keys", None)
            if keys is not None and keys.dim() == 4:
                layer.keys, layer.values = (keys.new_empty(*keys.shape[:2], context, keys.shape[3]).normal_() for _ in range(2))

    @torch.inference_mode()
    def step(self):
        self._pass(self.chosen[-1][:, None])

    def _pass(self, ids_BT):
        out = self.theirs(ids_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        self.chosen.append(out.logits[:, -1].argmax(-1))

    def tokens(self):
        return torch.stack(self.chosen, 1).cpu()

    def clear(self):
        self.cache, self.chosen = None, []
