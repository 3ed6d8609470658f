"""Adapters folded into the weights: one checkpoint that every server reads."""

from pathlib import Path

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.hub import resolve
from zamba_lm.model.checkpoint import read_json
from zamba_lm.model.weights import save_weights
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.recipes.origin import loaded


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    out_dtype: str | torch.dtype | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write base model + LoRA adapter to ``out`` in the style that transformers, vLLM and ``load_model`` read.

    adapter: a folder that PEFT saved. base: what it was trained on (None: what its adapter_config.json names); for an adapter
    trained over four-bit weights the full ones. The sum is made in float32 and rounded once, to ``out_dtype`` (None: the base's).
    tokenizer: written beside the weights (None: the adapter's where its folder holds one, else the base's). Raises
    ZambaError when adapter and base do not fit.
    """
    from peft import PeftModel

    from zamba_lm.hf import wrap

    folder = resolve(base or base_of(Path(adapter)))
    zamba = loaded(folder, device="cpu", dtype="auto")
    out_dtype, zamba = out_dtype or zamba.dtype, zamba.float()
    try:
        tuned = PeftModel.from_pretrained(wrap(zamba), str(adapter))
    except (RuntimeError, ValueError, KeyError) as error:
        raise ZambaError(f"the adapter {adapter} does not fit {folder}: {str(error).splitlines()[0][:200]}") from error
    save_weights(tuned.merge_and_unload(safe_merge=True).zamba, Path(out), dtype=out_dtype)
    own = adapter if Tokenizer.lies_in(adapter) else folder
    (tokenizer or Tokenizer.load(own)).save(out)
    return Path(out)


def base_of(adapter: Path) -> str:
    """What an adapter folder says that it was trained on."""
    file = adapter / "adapter_config.json"
    if not file.is_file():
        raise ZambaError(f"{adapter} has no adapter_config.json, so it is no adapter that PEFT saved")
    name = read_json(file).get("base_model_name_or_path")
    if not name:
        raise ZambaError(f"{file} does not say which model it belongs to; give the base")
    return name
