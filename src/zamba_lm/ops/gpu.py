"""Where Triton kernels can run, how one is found without importing Triton early, and how one is launched.

Triton comes with torch on Linux and Windows machines that have a GPU; elsewhere it may be missing, and nothing here needs it
until a kernel runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch

from zamba_lm.ops.dispatch import Implementation

OLDEST = (7, 5)  # compute capability: Turing, the first that today's Triton supports
DEPENDENT_LAUNCH = (9, 0)  # Hopper, the first with programmatic dependent launch
_interpreting = False


def no_triton(device: torch.device) -> str | None:
    """Why no Triton kernel runs on ``device``, or None when they do."""
    if device.type == "cpu" and _interpreting:
        return None
    if device.type != "cuda":
        return "Triton kernels need a GPU"
    if (have := torch.cuda.get_device_capability(device)) < OLDEST:
        return f"compute capability {have[0]}.{have[1]} is below {OLDEST[0]}.{OLDEST[1]}, the oldest that Triton supports"
    return _broken()


@cache
def _broken() -> str | None:
    """Why Triton cannot be imported, or None."""
    try:
        import_module("triton")
    except Exception as error:  # whatever a broken installation throws
        return f"Triton cannot be imported ({type(error).__name__}: {error}); install the one that belongs to your torch"
    return None


@contextmanager
def interpreted() -> Iterator[None]:
    """Let kernels run on CPU tensors inside the block: for tests, with Triton's interpreter switched on."""
    global _interpreting
    before, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = before


def lazy(module: str, name: str) -> Callable:
    """The function ``name`` of ``module``, imported when it is first called."""

    @cache
    def found() -> Callable:
        return getattr(import_module(module), name)

    def run(*args, **kwargs):
        return found()(*args, **kwargs)

    run.__name__ = run.__qualname__ = name
    return run


def kernels(op: str, function: str) -> Implementation:
    """The entry of an op's table that says: ``function`` of the op's folder of Triton kernels."""
    return Implementation("triton", lazy(f"zamba_lm.ops.{op}.triton", function), no_triton)


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; (0, 0) for a CPU, where kernels are interpreted."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 4 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def launch(kernel: Any, grid: tuple[int, ...], *args, device: torch.device, pdl: bool = False, **options) -> None:
    """Launch ``kernel`` over ``grid``.

    ``pdl``: the kernel takes a constexpr ``PDL`` and, where that is true, may start while the kernel before it still runs
    (programmatic dependent launch); it is true on GPUs that can.
    """
    if pdl:
        options["PDL"] = able = capability(device) >= DEPENDENT_LAUNCH
        if able:
            options["launch_pdl"] = True
    if device.type != "cuda":
        kernel[grid](*args, **options)
        return
    current = torch.cuda.current_device()
    if device.index in (None, current):
        _launch(kernel, grid, args, options, current)
    else:
        with torch.cuda.device(device):
            _launch(kernel, grid, args, options, device.index)


REMEMBERED = ("3.6.",)  # versions of Triton whose compiled kernels are called as below
_compiled: dict[tuple, tuple[Any, tuple]] = {}


def _launch(kernel: Any, grid: tuple[int, ...], args: tuple, options: dict, index: int) -> None:
    """Triton binds and specialises arguments at every call, for longer than most kernels run; a compiled kernel that is
    remembered by what Triton specialises on is launched in a fifth of that time. The first of a kind goes the ordinary way."""
    passed = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
    if (key := _kind(kernel, args, passed, options, index)) is None:
        kernel[grid](*args, **options)
    elif (entry := _compiled.get(key)) is None:
        compiled = kernel[grid](*args, **options)
        _compiled[key] = compiled, tuple(options[name] for name in kernel.arg_names[len(args) :])
    else:
        compiled, constants = entry
        stream = torch._C._cuda_getCurrentRawStream(index)
        compiled[(*grid, 1, 1)[:3]](*passed, *constants, stream=stream)


def _kind(kernel: Any, args: tuple, passed: list, options: dict, index: int) -> tuple | None:
    """What Triton compiles a launch for, or None for arguments that only Triton itself can judge. ``passed``: the arguments with
    addresses for tensors."""
    key = [kernel, index, *options.items()]
    for a, address in zip(args, passed):
        if isinstance(a, torch.Tensor):
            key.append((a.dtype, address % 16 == 0))
        elif type(a) is int:
            key.append((a == 1, a % 16 == 0, -(1 << 31) <= a < 1 << 31))
        elif a is None or type(a) is float:
            key.append(type(a))
        else:
            return None
    return tuple(key) if _remembers(kernel, len(args), tuple(options)) else None


@cache
def _remembers(kernel: Any, given: int, options: tuple[str, ...]) -> bool:
    """Whether this Triton is known, and every argument behind the ``given`` ones is an option."""
    return import_module("triton").__version__.startswith(REMEMBERED) and set(kernel.arg_names[given:]) <= set(options)
