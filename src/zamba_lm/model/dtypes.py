"""dtypes of a model, by the names people use."""

import torch

from zamba_lm.errors import ZambaError

_BY_NAME = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


def as_dtype(value: object) -> torch.dtype:
    """A name ("bf16", "torch.bfloat16") or a torch dtype -> the dtype. ZambaError for one that models cannot have."""
    name = str(value).lower().removeprefix("torch.")
    if name not in _BY_NAME:
        raise ZambaError(f"unknown dtype {value!r}, expected one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name used in configs, "bfloat16"."""
    return str(dtype).removeprefix("torch.")
