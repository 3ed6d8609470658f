"""Which tensor of a checkpoint is which part of the model, and putting it there. What does not fit is said at once, by name."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zamba_lm.errors import ZambaError
from zamba_lm.model.checkpoint import Source
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.int8rows import SCALE, expand
from zamba_lm.model.names import Piece, pieces, spare_names
from zamba_lm.model.safefile import Stored
from zamba_lm.model.styles import STYLES, style_of

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KEEP_FLOAT32 = (".A_log", ".D", ".dt_bias")  # exp and softplus magnify their rounding, and they are small
LEAST_MAPPED = 1 << 20  # bytes of a parameter from which a view of the file pays
_LISTED = 20  # names of one kind in an error


@dataclass(frozen=True)
class Found:
    """A piece of the model and the tensor that holds it, with the scales of int8 rows and the tied copies in the same
    checkpoint.
    """

    piece: Piece
    name: str
    source: Source
    scale: Source | None = None
    copies: tuple["Found", ...] = ()

    def read(self) -> Tensor:
        """The values: in the file's dtype, int8 rows multiplied out to float32."""
        return self.source.read() if self.scale is None else expand(self.source.read(), self.scale.read())

    def view_for(self, parameter: Tensor) -> Tensor | None:
        """A view of the file that can stand for ``parameter``: if large, on the CPU and byte for byte what the file has."""
        whole = self.piece.rows is None and self.piece.weave is None and self.scale is None and not self.copies
        fits = parameter.is_cpu and parameter.dtype == self.source.dtype and parameter.nbytes >= LEAST_MAPPED
        return self.source.map().view(parameter.shape) if whole and fits and _can_map(self.source) else None

    def place(self, parameter: Tensor) -> None:
        """Copy the tensor to its window of ``parameter`` (the whole of ours, any device). ZambaError if a tied copy differs."""
        window = self.piece.window(parameter)
        exact = self.scale is None and window.dtype == self.source.dtype
        if exact and window.is_cpu and window.is_contiguous():
            self.source.read_into(window)
        else:
            # Mapped, its rows go from the file to their places: memory for all of them in between costs as much again to find.
            mapped = window.is_cpu and self.scale is None and window.nbytes >= LEAST_MAPPED and _can_map(self.source)
            window.copy_((self.source.map() if mapped else self.read()).reshape(window.shape))
        for copy in self.copies:
            if not self._equals(copy, window.reshape(self.piece.shape) if exact else self.source.read()):
                raise ZambaError(f"{copy.name} in {copy.source.path} differs from {self.name}, whose tied copy it should be")

    def _equals(self, copy: "Found", tensor: Tensor) -> bool:
        """Is the copy equal, bit for bit, to ``tensor``, which is what the file has for this?"""
        if self.source.dtype != copy.source.dtype or (self.scale is None) != (copy.scale is None):
            return False
        if self.scale and copy.scale and not torch.equal(self.scale.read(), copy.scale.read()):
            return False
        return torch.equal(_bits(tensor), _bits(copy.source.read().to(tensor.device)))

    def dtype_in(self, dtype: torch.dtype) -> torch.dtype:
        """dtype of this parameter in a model of ``dtype``."""
        return kept_dtype(self.piece.target, self.source.dtype, dtype)


def _can_map(source: Source) -> bool:
    """Whether ``source`` can be looked at where it lies: in a safetensors file, at a multiple of its item size."""
    return isinstance(source, Stored) and source.start % source.dtype.itemsize == 0


def _bits(tensor: Tensor) -> Tensor:
    """The same bits as whole numbers, which equal themselves even where they mean NaN."""
    return tensor.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def kept_dtype(name: str, dtype: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    """dtype of our parameter ``name`` when everything is to be ``wanted``: A_log, D and dt_bias stay float32 where they are."""
    return torch.float32 if name.endswith(KEEP_FLOAT32) and dtype == torch.float32 else wanted


def match(config: ZambaConfig, tensors: dict[str, Source], folder: Path) -> list[Found]:
    """Find every piece of the model among the tensors of a checkpoint.

    One ZambaError lists all that is missing, unexpected, or of another shape or dtype. Adapters that no call uses, and buffers
    that follow from the config, are passed over.
    """
    style = style_of(tensors)
    if style is None:
        raise ZambaError(
            f"{folder} holds no Zamba weights: no tensor has a known name, the first is {next(iter(tensors), 'none')!r}"
        )
    troubles = _Troubles()
    found = [_find(piece, tensors, troubles) for piece in pieces(config, style)]
    troubles.unexpected += _unexpected(config, style, tensors)
    troubles.raise_if_any(folder, config)
    return [one for one in found if one]


def _find(piece: Piece, tensors: dict[str, Source], troubles: "_Troubles") -> Found | None:
    here = [Found(piece, name, tensors[name], tensors.get(name + SCALE)) for name in piece.names if name in tensors]
    for one in here:
        _check(one, troubles)
    if not here:
        troubles.missing.append(piece.names[0])
        return None
    return replace(here[0], copies=tuple(here[1:]))


def _check(one: Found, troubles: "_Troubles") -> None:
    shape, dtype, scale = one.source.shape, one.source.dtype, one.scale
    if shape != one.piece.shape:
        troubles.misshapen.append(f"{one.name} is {shape}, expected {one.piece.shape}")
    elif scale is not None and (dtype != torch.int8 or scale.dtype not in FLOATS or len(shape) != 2 or scale.shape != shape[:1]):
        troubles.mistyped.append(f"{one.name} has a {SCALE[1:]} that does not fit it")
    elif dtype not in FLOATS and scale is None:
        missing = f" without its {SCALE[1:]}" if dtype == torch.int8 else ", expected floats"
        troubles.mistyped.append(f"{one.name} is {str(dtype).removeprefix('torch.')}{missing}")


def _unexpected(config: ZambaConfig, style: str, tensors: dict[str, Source]) -> list[str]:
    names = {name for piece in pieces(config, style) for name in piece.names}
    known = names | {name + SCALE for name in names if name in tensors} | spare_names(config, style)
    idle = STYLES[config.family, style].ignored if style != "ours" else ()
    left = [
        name for name, source in tensors.items() if name not in known and 0 not in source.shape
    ]  # adapters of rank 0 are empty
    return [name for name in left if not any(re.fullmatch(pattern, name) for pattern in idle)]


class _Troubles:
    """What does not fit, collected to be said at once."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.misshapen: list[str] = []
        self.mistyped: list[str] = []

    def raise_if_any(self, folder: Path, config: ZambaConfig) -> None:
        parts = [f"{len(names)} {kind}: {_listing(names)}" for kind, names in vars(self).items() if names]
        if parts:
            raise ZambaError(f"the weights in {folder} do not fit its {config.family} config: {'; '.join(parts)}")


def _listing(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
