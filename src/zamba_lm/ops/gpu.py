"""Where Triton kernels can run, how one is found without importing Triton early, and how one is launched.

Triton comes with torch on Linux and Windows machines that have a GPU; elsewhere it may be missing, and nothing here needs it
until a kernel runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from threading import Thread
from time import time
from typing import Any

import torch

from zamba_lm.ops.dispatch import Implementation, choose_anew

OLDEST = (7, 5)  # compute capability: Turing, the first that today's Triton supports
DEPENDENT_LAUNCH = (9, 0)  # Hopper, the first with programmatic dependent launch
SINCE = time()  # no kernel has been imported before
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
    choose_anew()
    try:
        yield
    finally:
        _interpreting = before
        choose_anew()


def wake(device: torch.device) -> None:
    """Let Triton get ready for a GPU in the background, where there is something else to do, such as reading weights: it is
    imported, hashes itself for half a second, and has a C compiler make its driver where that is not in its cache."""
    if device.type == "cuda":
        Thread(target=_wake, daemon=True).start()


def _wake() -> None:
    with suppress(Exception):  # whoever runs a kernel will see
        import_module("triton.runtime.cache").triton_key()
        import_module("triton.runtime").driver.active.utils  # noqa: B018  a property that makes the driver


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


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own takes 30 times as long, and launchers ask some thousand times a training step."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


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
    if _taker is not None:
        _taker(kernel, grid, args, options)
        return
    current = torch.cuda.current_device()
    if device.index in (None, current):
        _launch(kernel, grid, args, options, current)
    else:
        with torch.cuda.device(device):
            _launch(kernel, grid, args, options, device.index)


_taker: Callable | None = None


@contextmanager
def taking(taker: Callable) -> Iterator[None]:
    """Inside, no kernel is launched on a GPU: ``taker`` is called with kernel, grid, arguments and options instead."""
    global _taker
    before, _taker = _taker, taker
    try:
        yield
    finally:
        _taker = before


KNOWN = ("3.6.",)  # versions of Triton whose compiled kernels are called as below, and compiled as in ahead.py
_compiled: dict[tuple, tuple] = {}


def _launch(kernel: Any, grid: tuple[int, ...], args: tuple, options: dict, index: int) -> None:
    """Triton binds and specialises arguments at every call, for longer than most kernels run; a compiled kernel that is
    remembered by what Triton specialises on is launched in a fifth of that time. The first of a kind goes the ordinary way."""
    key, passed = variant(kernel, args, options, index)
    if key is None:
        kernel[grid](*args, **options)
    elif (entry := _compiled.get(key)) is None:
        compiled = kernel[grid](*args, **options)
        constants = tuple(options[name] for name in kernel.arg_names[len(args) :])
        _compiled[key] = compiled, compiled.run, compiled.function, compiled.packed_metadata, constants
    else:
        compiled, run, function, packed, constants = entry
        stream = torch._C._cuda_getCurrentRawStream(index)
        if _hooks().launch_enter_hook.calls or _hooks().launch_exit_hook.calls:  # somebody watches, and wants to know of each
            compiled[(*grid, 1, 1)[:3]](*passed, *constants, stream=stream)
        else:
            run(*(*grid, 1, 1)[:3], stream, function, packed, None, None, None, *passed, *constants)


@cache
def _hooks() -> Any:
    return import_module("triton").knobs.runtime


def variant(kernel: Any, args: tuple, options: dict, index: int) -> tuple[tuple | None, list]:
    """What Triton compiles a launch for, or None for arguments that only Triton itself can judge; and the arguments with
    addresses for tensors. Some thousand times a training step, so it is written for speed."""
    key, passed = [kernel, index, *options, *options.values()], []
    add, put = key.append, passed.append
    for a in args:
        kind = type(a)
        if kind is int:
            add((a == 1) + 2 * (not a & 15) + 4 * (-(1 << 31) <= a < 1 << 31))
            put(a)
        elif isinstance(a, torch.Tensor):
            address = a.data_ptr()
            add(a.dtype)
            add(not address & 15)
            put(address)
        elif a is None or kind is float:
            add(kind)
            put(a)
        else:
            return None, passed
    return tuple(key) if _remembers(kernel, len(args), tuple(options)) else None, passed


@cache
def _remembers(kernel: Any, given: int, options: tuple[str, ...]) -> bool:
    """Whether this Triton is known, and every argument behind the ``given`` ones is an option."""
    return known_triton() and set(kernel.arg_names[given:]) <= set(options)


@cache
def known_triton() -> bool:
    """Whether more may be asked of this Triton than it promises."""
    return import_module("triton").__version__.startswith(KNOWN)
