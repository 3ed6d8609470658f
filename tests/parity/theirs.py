"""The transformers side: quiet, on one CPU, from and to folders."""

import warnings
from pathlib import Path

import torch
import transformers
from transformers import Zamba2ForCausalLM, ZambaForCausalLM

from zamba_lm.model.config import ZambaConfig

CLASSES = {"zamba": ZambaForCausalLM, "zamba2": Zamba2ForCausalLM}
CHUNK = 32  # of their scan: several chunks in a short text, and less work than their 256

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def read(folder: Path, config: ZambaConfig, **changes):
    """Their model from a folder of ours. A file that they find incomplete, too full or misshapen is an AssertionError.

    ``changes`` to their config come on top of the RoPE base, which they do not rescale themselves for long contexts.
    """
    changes = rescaled(config) | changes | ({"chunk_size": CHUNK} if config.family == "zamba2" else {})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # their adapters of rank 0
        model, info = CLASSES[config.family].from_pretrained(folder, output_loading_info=True, **changes)
    complaints = {kind: found for kind, found in info.items() if found}
    assert not complaints, complaints
    return model.requires_grad_(False).eval()


def rescaled(config: ZambaConfig) -> dict:
    """What their config must say for the long-context RoPE of the models' authors."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base}} if config.long_context else {}


@torch.inference_mode()
def logits(model, ids_BT: torch.Tensor) -> torch.Tensor:
    return model(ids_BT, use_cache=False).logits
