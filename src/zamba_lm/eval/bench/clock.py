"""Time and memory of work on a device: medians and their spread, after a warm-up."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROUND = 0.05  # seconds that one round should take at the least: short work is repeated inside of it
MOST = 50  # calls of a round at most


@dataclass(frozen=True)
class Spread:
    """Seconds of one call: the median of several rounds, the fastest and the slowest of them."""

    median: float
    low: float
    high: float
    rounds: int
    calls: int  # in each round

    @classmethod
    def of(cls, seconds: list[float], calls: int = 1) -> "Spread":
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds), calls)


def measure(work: Callable[[], object], device: torch.device, repeats: int, least: float | None = None) -> Spread:
    """Seconds of ``work()``: ``repeats`` rounds of as many calls as fill ``least`` seconds (``ROUND``), after two calls that are
    not counted.

    On a GPU by events on its stream, so that calls which only enqueue are timed by when they run; elsewhere by the clock.
    """
    work()
    calls = max(1, min(MOST, round((least or ROUND) / max(_round(work, device, 1), 1e-9))))
    return Spread.of([_round(work, device, calls) / calls for _ in range(repeats)], calls)


def measure_answer(
    work: Callable[[], object], device: torch.device, repeats: int, between: Callable[[], object], warm_up: int = 2
) -> Spread:
    """Seconds on the host's clock until ``work()`` returns with what the host waits for; ``between()`` runs before each call,
    untimed, and the device is idle when the clock starts. The first ``warm_up`` calls are not counted."""
    seconds = []
    for _ in range(repeats + warm_up):
        between()
        synchronize(device)
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return Spread.of(seconds[warm_up:])


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _round(work, device: torch.device, calls: int) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class Peak:
    """Most bytes of device memory held inside the block: ``with Peak(device) as peak: ...``, then ``peak.bytes``.

    ``apart``: bytes held by others all the time, which do not count. On a CPU it is what the process has held at most since it
    began, or None where the system does not tell.
    """

    def __init__(self, device: torch.device, apart: int = 0):
        self.device, self.apart, self.bytes = device, apart, None

    def __enter__(self) -> "Peak":
        tidy(self.device)
        forget_peak(self.device)
        return self

    def __exit__(self, *error) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.apart
        else:
            self.bytes = _process_peak()


def forget_peak(device: torch.device) -> None:
    """Let the peak start anew from what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def tidy(device: torch.device) -> None:
    """Give back what nobody uses."""
    gc.collect()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a GPU now; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def free_bytes(device: torch.device) -> int | None:
    """Bytes free on the device, or None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kilobytes("/proc/meminfo", "MemAvailable")


def _process_peak() -> int | None:
    return _kilobytes("/proc/self/status", "VmHWM")


def _kilobytes(file: str, key: str) -> int | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)
