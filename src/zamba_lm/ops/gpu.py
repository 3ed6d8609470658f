"""Where Triton kernels can run, how one is found without importing Triton early, and how one is launched.

Triton comes with torch on Linux and Windows machines that have a GPU; elsewhere it may be missing, and nothing here needs it
until a kernel runs.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch

from zamba_lm.ops.dispatch import Implementation, choose_anew

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
    choose_anew()
    try:
        yield
    finally:
        _interpreting = before
        choose_anew()


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
    if _asked is not None:
        _ask(_asked, kernel, grid, args, options)
        return
    current = torch.cuda.current_device()
    if device.index in (None, current):
        _launch(kernel, grid, args, options, current)
    else:
        with torch.cuda.device(device):
            _launch(kernel, grid, args, options, device.index)


THREADS = 8  # that compile; more of them only queue for Python, which the front half of Triton's compiler holds
_asked: set[tuple] | None = None  # while kernels are compiled and not launched: those that are


@contextmanager
def compiling(device: torch.device) -> Iterator[None]:
    """Inside, no kernel is launched; those that would have been are compiled side by side, and on the way out all are there.

    What they would have computed is garbage, so run inside only what may be thrown away. One after the other, the kernels of a
    first pass take some ten seconds. Triton's compiler leaves Python free for most of its time, as do the assembler and the C
    compiler, which Triton calls to make a launcher for each kernel.
    """
    global _asked
    mode, later = import_module("triton").AsyncCompileMode, _Later()
    with torch.cuda.device(device), mode(later, ignore_errors=True):  # what fails here fails again where it is launched
        before, _asked = _asked, set()
        try:
            yield
        finally:
            _asked = before
            later.run(THREADS, device)


class _Later:
    """An executor for Triton that begins when everything has been asked for, since who asks would have to share Python with those
    who compile, and that loads what it has compiled, as the first launch would."""

    def __init__(self):
        self.work: list[tuple[Future, Callable]] = []

    def submit(self, compile: Callable) -> Future:
        self.work.append((Future(), compile))
        return self.work[-1][0]

    def run(self, threads: int, device: torch.device) -> None:
        with ThreadPoolExecutor(threads, initializer=lambda: torch.cuda.set_device(device)) as pool:
            for future, compile in self.work:
                pool.submit(self._one, future, compile)

    @staticmethod
    def _one(future: Future, compile: Callable) -> None:
        try:
            kernel = compile()
            kernel.run  # noqa: B018  a property that makes the launcher
            future.set_result(kernel)
        except BaseException as error:  # whoever launches it will see
            future.set_exception(error)


def _ask(asked: set[tuple], kernel: Any, grid: tuple[int, ...], args: tuple, options: dict) -> None:
    """Have a kernel compiled, once of each kind: asking Triton takes as long as some hundred launches."""
    key, _ = _kind(kernel, args, options, 0)
    if key is None or key not in asked:
        kernel.warmup(*args, grid=grid, **options)
        asked.add(key if key is not None else (kernel,))


REMEMBERED = ("3.6.",)  # versions of Triton whose compiled kernels are called as below
_compiled: dict[tuple, tuple] = {}


def _launch(kernel: Any, grid: tuple[int, ...], args: tuple, options: dict, index: int) -> None:
    """Triton binds and specialises arguments at every call, for longer than most kernels run; a compiled kernel that is
    remembered by what Triton specialises on is launched in a fifth of that time. The first of a kind goes the ordinary way."""
    key, passed = _kind(kernel, args, options, index)
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


def _kind(kernel: Any, args: tuple, options: dict, index: int) -> tuple[tuple | None, list]:
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
    return import_module("triton").__version__.startswith(REMEMBERED) and set(kernel.arg_names[given:]) <= set(options)
