"""When two sides compute the same function, and when a speed-up may be printed.

The rule. Both sides and an exact pass (the reference implementations in float64; float32 where that has no room) see random
texts of 96 tokens: eight on a GPU, one on a CPU and for training.

1. Logits after every token: a side's error is the root mean square distance from the exact logits, over their spread (standard
   deviation). Each error must be at most ``LIMITS`` of the dtype, and ours at most ``COMPARABLE`` times theirs.
2. Tokens: each side continues the first half of the first text greedily by the very route that is timed (caches, graphs and
   all). The exact pass reads what a side wrote. Wherever the side did not take the exactly most likely token, what it lost by
   that must lie within its rounding: at most ``REGRET`` times the larger error, in spreads.
3. For training, gradients of a few matrices stand where tokens stood: the distance from the exact ones over their norm must be
   at most ``GRADIENT_LIMITS``, and ours at most ``COMPARABLE`` times theirs.

Otherwise ``Agreement.ok`` is false, ``reason`` says which numbers disagree, and no speed-up is printed.
"""

import math
from dataclasses import dataclass
from statistics import stdev

import torch

LIMITS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}  # of the logits' spread: 50 to 80 layers deep errors add up
GRADIENT_LIMITS = {"float32": 1e-2, "float16": 0.2, "bfloat16": 0.5}
COMPARABLE = 1.1
FLOOR = 1e-5  # errors below this are equal: both sides are as exact as float32
REGRET = 6.0


@dataclass(frozen=True)
class Agreement:
    """Errors of both sides against the exact pass, and whether they let a speed-up be printed."""

    ok: bool
    reason: str
    exact: str  # dtype of the exact pass
    ours: float
    theirs: float
    our_regret: float = 0.0
    their_regret: float = 0.0
    our_gradient: float | None = None
    their_gradient: float | None = None
    texts: int = 1
    doubt: float | None = None  # standard error of ours - theirs over the texts


def unknown(reason: str) -> Agreement:
    """Nothing could be compared."""
    nan = float("nan")
    return Agreement(False, reason, "none", nan, nan, nan, nan)


def error(logits_TV: torch.Tensor, exact_TV: torch.Tensor) -> float:
    """Root mean square distance over the spread of the exact logits; inf for anything that is not a number."""
    distance = (logits_TV.double() - exact_TV.double()).square().mean().sqrt() / exact_TV.double().std()
    return distance.nan_to_num(nan=torch.inf).item()


def together(errors: list[float]) -> float:
    """Root mean square of the errors of several texts."""
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def doubt(ours: list[float], theirs: list[float]) -> float | None:
    """Standard error of the mean of ours - theirs, text by text; None for one text."""
    if len(ours) < 2:
        return None
    return stdev(a - b for a, b in zip(ours, theirs, strict=True)) / math.sqrt(len(ours))


def regret(tokens_T: torch.Tensor, exact_TV: torch.Tensor) -> float:
    """The most that a chosen token lies below the best one, in spreads. ``exact_TV[t]``: what the choice of token t saw."""
    best = exact_TV.max(-1).values
    chosen = exact_TV.gather(-1, tokens_T[:, None])[:, 0]
    return ((best - chosen).max() / exact_TV.std()).item()


def relative(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Distance over norm, of several tensors as one vector; inf for anything that is not a number."""
    apart = sum((f.double() - e.double()).square().sum() for f, e in zip(found, exact, strict=True))
    size = sum(e.double().square().sum() for e in exact)
    return (apart / size).sqrt().nan_to_num(nan=torch.inf).item()


def judge(dtype: str, exact: str, errors, regrets=(0.0, 0.0), gradients=None) -> Agreement:
    """Apply the rule. Pairs are (ours, theirs); an error is a number, or a list of one a text."""
    sides = [side if isinstance(side, list) else [side] for side in errors]
    (ours, theirs), (our_regret, their_regret) = map(together, sides), regrets
    our_gradient, their_gradient = gradients or (None, None)
    reason = _logits(dtype, ours, theirs) or _tokens(max(ours, theirs), our_regret, their_regret)
    if gradients is not None:
        reason = reason or _gradients(dtype, our_gradient, their_gradient)
    found = (ours, theirs, our_regret, their_regret, our_gradient, their_gradient)
    return Agreement(not reason, reason, exact, *found, texts=len(sides[0]), doubt=doubt(*sides))


def _logits(dtype: str, ours: float, theirs: float) -> str:
    for side, found in (("our", ours), ("their", theirs)):
        if not found <= LIMITS[dtype]:
            return f"{side} logits are off by {found:.3g} of their spread, {LIMITS[dtype]:g} is allowed in {dtype}"
    return _comparable("logits", ours, theirs)


def _tokens(error: float, our_regret: float, their_regret: float) -> str:
    allowed = REGRET * max(error, FLOOR)
    for side, found in (("our", our_regret), ("their", their_regret)):
        if not found <= allowed:
            return f"{side} greedy tokens lie {found:.3g} spreads below the best, {allowed:.3g} is within rounding"
    return ""


def _gradients(dtype: str, ours: float, theirs: float) -> str:
    for side, found in (("our", ours), ("their", theirs)):
        if not found <= GRADIENT_LIMITS[dtype]:
            return f"{side} gradients are off by {found:.3g} of their norm, {GRADIENT_LIMITS[dtype]:g} is allowed in {dtype}"
    return _comparable("gradients", ours, theirs)


def _comparable(what: str, ours: float, theirs: float) -> str:
    if ours <= max(COMPARABLE * theirs, FLOOR):
        return ""
    return f"our {what} are off by {ours:.3g}, theirs by {theirs:.3g}; ours may be {COMPARABLE:g} times theirs"
