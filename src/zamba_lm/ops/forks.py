"""A program that compiles Triton kernels: reads which from standard input, forks a process for each, ends when all are done.

    python -I forks.py < JOBS

The first line is a JSON object: ``path`` (sys.path), ``triton`` (Triton's hash of itself), ``since`` (when who asks began to
import kernels; files changed later are not compiled), ``arch`` (compute capability: 90) and ``cores`` (kernels at a time). Each
other line is a list: a kernel's module, its name, Triton's hash of it, and what to compile it for in Triton's own words
(specialization data). What is compiled ends in Triton's cache, where whoever launches the
kernel finds it; one that fails is simply not there. Needs no GPU, and nothing but Triton: torch, which takes seconds to import,
is replaced by names.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Names(type):
    """A class whose every attribute is itself."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class Nothing(metaclass=_Names):
    """Any name of torch's where a module of kernels says it and no kernel means it: in annotations, defaults, base classes, and
    as a decorator, which leaves a function as it is."""

    def __new__(cls, *args, **kwargs):
        return args[0] if args and callable(args[0]) else cls


class _Module(ModuleType):
    def __getattr__(self, name: str) -> type:
        return getattr(Nothing, name)


class _WithoutTorch(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torch" else None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


class _Driver:
    """What Triton asks of a GPU while it compiles."""

    def __init__(self, arch: int):
        self.target = import_module("triton.backends.compiler").GPUTarget("cuda", arch, 32)
        self.launcher_cls = import_module("triton.backends.nvidia.driver").CudaLauncher

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return 0


def unchanged(since: float) -> bool:
    """Whether what has been imported of this package is as old as the process that asks: its hashes are of what it imported."""
    ours = [module for name, module in sys.modules.items() if name.startswith("zamba_lm.")]
    return all(os.path.getmtime(str(module.__file__)) <= since for module in ours)


def compile(module: str, name: str, key: str, data: str) -> None:
    """One kernel, and the launcher for its arguments, which a C compiler makes."""
    kernel = getattr(import_module(module), name)
    kernel.hash = key  # Triton's own answer differs with what has been compiled before
    compiled = kernel.preload(data)
    import_module("triton.runtime").driver.active.launcher_cls(compiled.src, compiled.metadata)


def begin(told: dict) -> None:
    """Be to Triton what the process was that asks."""
    sys.path[:] = told["path"]
    sys.meta_path.insert(0, _WithoutTorch())
    import_module("triton.runtime").driver.set_active(_Driver(told["arch"]))
    triton_cache: Any = import_module("triton.runtime.cache")
    triton_cache.triton_key = lambda: told["triton"]  # to work it out takes half a second


def main(lines: Iterator[str]) -> None:
    begin(told := json.loads(next(lines)))
    alive = 0
    for line in lines:
        job = json.loads(line)
        with suppress(Exception):
            import_module(job[0])  # once for all forks
        if alive == told["cores"]:
            os.wait()
            alive -= 1
        if not os.fork():
            with suppress(BaseException):  # who launches it will see
                if unchanged(told["since"]):
                    compile(*job)
            os._exit(0)
        alive += 1
    for _ in range(alive):
        os.wait()


if __name__ == "__main__":
    main(iter(sys.stdin.readline, ""))
