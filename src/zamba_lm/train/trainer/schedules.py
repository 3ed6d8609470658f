"""Learning rates over a run, as shares of the peak: pure functions of the step."""

from collections.abc import Callable
from math import cos, exp, pi

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest

Rate = Callable[[int], float]  # from the number of steps done to the share of the peak that the next step takes


def schedule(kind: str, *, steps: int, warmup: int, floor: float, decay_from: float = 0.0, gamma: float = 0.25) -> Rate:
    """The share of the peak for each of ``steps`` steps.

    The first ``warmup`` steps rise linearly; the rest follows ``kind`` down to ``floor`` (a share of the peak):
    constant; linear and cosine, which begin to fall at ``decay_from`` (a share of the run); exponential, a exp(-t / (gamma T))
    + b matched to both ends.
    """
    if kind not in SHAPES:
        raise ZambaError(f"unknown schedule {kind!r}{nearest(kind, SHAPES)}, expected one of {', '.join(SHAPES)}")
    start = max(warmup, round(decay_from * steps))
    fall = SHAPES[kind](gamma)

    def rate(done: int) -> float:
        if done < warmup:
            return (done + 1) / warmup
        if done < start:
            return 1.0
        progress = min(1.0, (done - start) / max(1, steps - start))
        return floor + (1 - floor) * fall(progress)

    return rate


def _constant(gamma: float) -> Callable[[float], float]:
    return lambda progress: 1.0


def _linear(gamma: float) -> Callable[[float], float]:
    return lambda progress: 1 - progress


def _cosine(gamma: float) -> Callable[[float], float]:
    return lambda progress: (1 + cos(pi * progress)) / 2


def _exponential(gamma: float) -> Callable[[float], float]:
    """a exp(-t / gamma) + b with value 1 at t = 0 and 0 at t = 1."""
    end = exp(-1 / gamma)
    return lambda progress: (exp(-progress / gamma) - end) / (1 - end)


SHAPES = {"constant": _constant, "linear": _linear, "cosine": _cosine, "exponential": _exponential}
