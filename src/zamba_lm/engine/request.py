"""What goes into the engine and what comes out of it, as plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any

from zamba_lm.errors import ZambaError

# name, lowest, highest (None: no limit)
WHOLE = (
    ("max_tokens", 1, None),
    ("top_k", 0, None),
    ("seed", 0, 2**64 - 1),  # what torch.Generator.manual_seed takes
    ("logprobs", 0, 1000),
)
OPTIONAL = ("seed", "logprobs")  # None is off
REAL = (
    ("temperature", lambda x: x >= 0, "of at least 0"),
    ("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
    ("min_p", lambda x: 0 <= x <= 1, "from 0 to 1"),
    ("repetition_penalty", lambda x: x > 0, "above 0"),
)


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued. Raises ZambaError naming the value and the range when one cannot be meant.

    - ``max_tokens``: new tokens at most.
    - ``temperature``: 0 is greedy (the most likely token, always); otherwise logits are divided by it.
    - ``top_k``: only the k most likely tokens; 0 is off. ``top_p``: the fewest tokens that hold this much probability; 1 is off.
      ``min_p``: tokens at least this fraction as likely as the most likely one; 0 is off.
    - ``repetition_penalty``: above 1 makes tokens of the prompt and the output less likely; 1 is off.
    - ``seed``: the same seed, prompt and settings give the same output, whatever else runs in the batch; None draws a seed.
    - ``stop``: text that ends the output and is left out of it, one string or several.
    - ``logprobs``: also report the log probability of each chosen token and this many of the most likely ones (0: the chosen
      token alone). They are those of the model itself, before temperature, penalties and filters. None reports nothing.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    logprobs: int | None = None

    def __post_init__(self):
        for name, low, high in WHOLE:
            if (value := getattr(self, name)) is not None or name not in OPTIONAL:
                _expect_whole(name, value, low, high)
        for name, fits, expected in REAL:
            _expect_real(name, getattr(self, name), fits, expected)
        object.__setattr__(self, "stop", _stop_tuple(self.stop))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def plain(self) -> bool:
        """Greedy with nothing to look up: one argmax answers it."""
        return self.greedy and self.repetition_penalty == 1 and self.logprobs is None


@dataclass(frozen=True)
class Request:
    """A prompt of token ids to continue."""

    id: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at one position: of the chosen token, and of the most likely ones, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob)


@dataclass(frozen=True, slots=True)
class Event:
    """One new token of one request. ``finish_reason`` is None until the last: "stop" (an end token) or "length".

    A request that cannot go on ends with "error" instead, without a token, and ``error`` says why.
    """

    request_id: int
    token: int | None
    finish_reason: str | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@dataclass(frozen=True)
class Completion:
    """What became of a request. ``ids`` holds every generated token, the end token included; ``text`` is empty below llm.py."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    finish_reason: str | None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    text: str = ""


def _expect_whole(name: str, value, low: int, high: int | None) -> None:
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_whole and value >= low and (high is None or value <= high)):
        reach = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ZambaError(f"{name} is {value!r}, expected a whole number {reach}")


def _expect_real(name: str, value, fits: Callable[[Any], bool], expected: str) -> None:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_real and isfinite(value) and fits(value)):
        raise ZambaError(f"{name} is {value!r}, expected a number {expected}")


def _stop_tuple(stop) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not (isinstance(stops, Sequence) and all(isinstance(text, str) and text for text in stops)):
        raise ZambaError(f"stop is {stop!r}, expected a text of at least one character, or a list of such texts")
    return tuple(stops)
