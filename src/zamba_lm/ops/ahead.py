"""Kernels compiled before they are first launched, side by side: by forks of a program (``forks.py``), and what those leave by
threads.

One after the other, the kernels of a first pass take some ten seconds. Threads take turns at the front half of Triton's compiler,
which is written in Python; processes do not. A process that holds a GPU and threads cannot be forked, so the program is a new one
that has neither (docs/decisions/0012-compiled-ahead-in-processes.md).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from zamba_lm.ops import gpu

FORKS = 16  # kernels at most that are compiled at a time; 0: threads compile all
THREADS = 8  # more of them only queue for Python


@contextmanager
def compiling(device: torch.device) -> Iterator[None]:
    """Inside, no kernel is launched; those that would have been are compiled side by side, and on the way out all are there.

    What they would have computed is garbage, so run inside only what may be thrown away.
    """
    forks, later = Forks(device), Later(device)
    with torch.cuda.device(device), _mode(forks, later), later, forks, gpu.taking(Asked()):
        yield


class Asked:
    """Has each kind of launch compiled once: asking Triton takes as long as some hundred launches."""

    def __init__(self):
        self.variants: set[tuple] = set()

    def __call__(self, kernel: Any, grid: tuple[int, ...], args: tuple, options: dict) -> None:
        key, _ = gpu.variant(kernel, args, options, 0)
        if key is None or key not in self.variants:
            with suppress(Exception):  # what fails here fails again where it is launched
                kernel.warmup(*args, grid=grid, **options)
            self.variants.add(key if key is not None else (kernel,))


def _mode(forks: "Forks", later: "Later") -> Any:
    """Triton's mode in which what is asked for goes to an executor; here to ``forks`` as well."""
    mode: Any = import_module("triton").AsyncCompileMode

    class Mode(mode):
        def submit(self, key, compile_fn, finalize_fn):
            forks.want(key)
            return super().submit(key, compile_fn, finalize_fn)

    return Mode(later, ignore_errors=True)


class Forks:
    """The program, started when the first kernel is wanted that is not in Triton's cache. All it does is to fill the cache: what
    it cannot do, threads do."""

    def __init__(self, device: torch.device):
        able = hasattr(os, "fork") and sys.executable and torch.version.hip is None and gpu.known_triton()
        self.cores = min(FORKS, cores()) if able else 0
        self.device, self.sent = device, set[str]()
        self.process: subprocess.Popen | None = None
        self.heard = ("", "", "", "")  # module, name, Triton's hash and what to compile for, of the newest kernel

    def __enter__(self):
        """From here on Triton says in full what a kernel is compiled for, before it hands it on."""
        self._before = import_module("triton").knobs.runtime.jit_cache_hook
        if self.cores > 1:
            import_module("triton").knobs.runtime.jit_cache_hook = self._hear

    def __exit__(self, *error):
        """Wait until all is compiled."""
        import_module("triton").knobs.runtime.jit_cache_hook = self._before
        if self.process is not None:
            with suppress(OSError):
                self.process.communicate()

    def _hear(self, *, fn: Any, compile: dict, **others) -> None:
        self.heard = fn.module, fn.name, fn.jit_function.cache_key, compile["specialization_data"]

    def want(self, key: str) -> None:
        """Have the kernel that was just heard of compiled, unless it is in the cache under ``key``."""
        if self.cores > 1 and key not in self.sent and not cached(key, self.heard[1]):
            self.sent.add(key)
            with suppress(OSError):  # the program could not be started, or has ended
                self._send(self.heard)

    def _send(self, job: Any) -> None:
        if self.process is None:
            program = [sys.executable, "-I", str(Path(__file__).with_name("forks.py"))]
            nowhere = subprocess.DEVNULL
            self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere)
            major, minor = gpu.capability(self.device)
            triton, path = import_module("triton.runtime.cache").triton_key(), list(map(str, sys.path))
            told = {"path": path, "triton": triton, "since": gpu.SINCE, "arch": 10 * major + minor, "cores": self.cores}
            self._send(told)
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cached(key: str, name: str) -> bool:
    """Whether Triton's cache holds what it compiled under ``key`` from the kernel called ``name``."""
    folder = import_module("triton.runtime.cache").get_cache_manager(sha256(key.encode()).hexdigest())
    return folder.get_group(f"{name[:150]}.json") is not None


class Later:
    """An executor for Triton that begins when everything has been asked for, since who asks would have to share Python with those
    who compile, and that loads what is compiled, as the first launch would."""

    def __init__(self, device: torch.device):
        self.device = device
        self.work: list[tuple[Future, Callable]] = []

    def submit(self, compile: Callable) -> Future:
        self.work.append((Future(), compile))
        return self.work[-1][0]

    def __enter__(self):
        pass

    def __exit__(self, *error):
        with ThreadPoolExecutor(THREADS, initializer=lambda: torch.cuda.set_device(self.device)) as pool:
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
