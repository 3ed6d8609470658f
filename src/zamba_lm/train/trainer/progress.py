"""How a run is doing: speed, memory and time left for people and for the log."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import torch

from zamba_lm.train.trainer.peaks import peak_flops


class Pace:
    """Speed of a run from counts of tokens and operations at two moments. Time in ``pause`` (saving, evaluating) is left out of
    the speed, not out of the time left."""

    def __init__(self, device: torch.device, *, peak: float | None, now=monotonic):
        self._now, self._peak = now, peak or _known_peak(device)
        self._start = self._last = now()
        self._paused = 0.0
        self._tokens = self._flops = 0.0
        self._first_step: int | None = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._paused += self._now() - start

    def begin(self, step: int, tokens: float, flops: float) -> None:
        """From here on counts count."""
        self._start = self._last = self._now()
        self._first_step, self._tokens, self._flops, self._paused = step, tokens, flops, 0.0

    def look(self, step: int, of: int, tokens: float, flops: float, processes: int) -> dict[str, float]:
        """tokens_per_s and mfu (of all processes, since the last look), seconds since ``begin``, seconds_left. ``mfu`` is left
        out where the device's peak or the operations are unknown."""
        now = self._now()
        seconds = max(1e-9, now - self._last - self._paused)
        done = max(1, step - (self._first_step or 0))
        found = {
            "tokens_per_s": round((tokens - self._tokens) / seconds, 1),
            "seconds": round(now - self._start, 2),
            "seconds_left": round((of - step) * (now - self._start) / done, 1),
        }
        if self._peak and flops > self._flops:
            found["mfu"] = round((flops - self._flops) / seconds / self._peak / processes, 4)
        self._last, self._paused, self._tokens, self._flops = now, 0.0, tokens, flops
        return found


def _known_peak(device: torch.device) -> float | None:
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def memory_gib(device: torch.device) -> float:
    """The most memory so far, GiB: tensors on a GPU, the process on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


# one line of it


def line(entry: dict, of: int) -> str:
    """A log entry as a line for people; what it lacks is left out."""
    parts = [f"step {entry['step']}/{of}"]
    if "stage" in entry:
        parts.append(str(entry["stage"]))
    parts += [text.format(entry[key]) for key, text in _SHOWN.items() if entry.get(key) is not None]
    if entry.get("tokens_per_s"):
        parts.append(f"{short(entry['tokens_per_s'])} tok/s")
    measured = [key for key in entry if key.startswith("eval_") and "/" not in key]
    parts += [f"{key.removeprefix('eval_')} {entry[key]:.4f}" for key in measured]
    if entry.get("skipped"):
        parts.append(f"{entry['skipped']} steps left out")
    if entry.get("seconds_left") is not None:
        parts.append(f"{duration(entry['seconds_left'])} left")
    return "  ".join(parts)


_SHOWN = {
    "loss": "loss {:.4f}",
    "grad_norm": "|g| {:.3g}",
    "learning_rate": "lr {:.3g}",
    "mfu": "mfu {:.1%}",
    "memory_gib": "{} GiB",
}


def short(number: float) -> str:
    """1234567 as "1.23M"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds as "42 s", "7 min", "3 h 05" or "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02}" if hours < 48 else f"{hours // 24} d {hours % 24} h"
