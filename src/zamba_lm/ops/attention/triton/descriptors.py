"""What the copy engine of Hopper GPUs reads: tiles of keys or values."""

import torch
from triton.tools.tensor_descriptor import TensorDescriptor


def describable(*tensors: torch.Tensor) -> bool:
    """Whether the copy engine can read these: 16-byte steps and a 16-byte start."""
    size = tensors[0].element_size()
    if size == 4:
        return False
    return all(x.data_ptr() % 16 == 0 and all(step * size % 16 == 0 for step in x.stride()[:-1]) for x in tensors)


def descriptor(x: torch.Tensor, rows: int, wide: int, paged: bool) -> TensorDescriptor:
    """Tiles of ``rows`` by ``wide`` of a pool (pages, heads, PAGE, d), by rows of all pages, or of packed (T, heads, d)."""
    if paged:
        n = x.shape[0] * x.shape[1] * x.shape[2]
        return TensorDescriptor(x, [n, x.shape[3]], [x.shape[3], 1], [rows, wide])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, 1, wide])
