"""Every op by every implementation that can run here, beside others, at the sizes of a model.

Each is held against the reference on the same numbers in float32 before it is timed: the distance of its outputs over their norm
must be at most ``LIMITS`` of the dtype, or it is shown without a time. On a GPU the calls of a case are captured in one graph and
replayed, over as many sets of inputs as it takes to find none of them in the cache; the reference, which is a specification, is
timed call by call.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench.agree import relative
from zamba_lm.eval.bench.clock import Spread, measure, tidy
from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.kernel_cases import KERNELS, KernelCase
from zamba_lm.eval.bench.kernel_work import Draw, Work, outputs
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.dtypes import as_dtype
from zamba_lm.ops.dispatch import OPS, force

LIMITS = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.03}
GRADIENTS = 4  # times as much for gradients: sums over tokens of numbers that were rounded, some nearly cancelling
CACHE = 256 << 20  # bytes that no cache holds
MOST_SETS = 32
SLOW = ("reference", "compiled")  # a specification; one that waits for a compiler
CALLS = 20  # in one graph, at the least


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One implementation of one op at one size."""

    kernel: str
    op: str
    side: str  # an implementation of ours, or somebody else's
    ours: bool
    part: bool = False  # it does only some of the work, so it may be faster
    rows: int
    tokens: int
    seconds: Spread | None
    cost: Cost
    limit: float
    error: float | None = None
    ratio: float | None = None  # its time over that of our fastest
    note: str = ""

    def plain(self, roof: Roof) -> dict:
        time = self.seconds and self.seconds.median
        return asdict(self) | {
            "copy_share": self.cost.bytes / time / roof.copy_rate if time else None,
            "matrix_share": self.cost.flops / time / roof.matrix_rate if time else None,
            "of_limit": self.limit / time if time else None,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which kernels of which shapes, where."""

    config: ZambaConfig
    dtype: str
    device: torch.device
    roof: Roof
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    repeats: int
    seed: int = 0
    ops: tuple[str, ...] = ()  # empty: all
    references: bool = True  # time reference implementations too, where there is another
    least: float | None = None  # seconds of a round, the clock's own where None


Size = tuple[KernelCase, int, int]  # a case with its rows and tokens


def kernels(plan: Plan) -> list[KernelRow]:
    """All rows of a plan. ZambaError for an op that no case measures."""
    known = sorted({case.op for case in KERNELS})
    for op in plan.ops:
        if op not in known:
            raise ZambaError(f"--op {op}: no such case, expected some of {', '.join(known)}")
    return [row for size in sizes(plan) for row in measured(plan, *size)]


def sizes(plan: Plan) -> Iterator[Size]:
    """All there is to measure."""
    for case in KERNELS:
        if not case.fits(plan.config) or (plan.ops and case.op not in plan.ops):
            continue
        if case.sizes == "sequence":
            yield from ((case, 1, tokens) for tokens in plan.contexts)
        else:
            contexts = plan.contexts if case.per_context else (0,)
            yield from ((case, rows, past) for rows, past in product(plan.batches, contexts))


def measured(plan: Plan, case: KernelCase, rows: int, tokens: int) -> list[KernelRow]:
    """One row for every implementation of ours and every peer; ratios among those that agree."""
    tidy(plan.device)
    try:
        work, exact = _work(plan, case, rows, tokens), _exact(plan, case, rows, tokens)
    except Exception as problem:  # of this case: the others are still worth their rows
        return [_row(plan, case, rows, tokens, Cost(0, 0), side="reference", ours=True, note=_in_short(problem))]
    found = [_measured(plan, case, rows, tokens, work, exact, *side) for side in _sides(plan, case, work)]
    best = min((row.seconds.median for row in found if row.ours and row.seconds), default=None)
    return [replace(row, ratio=row.seconds.median / best) if row.seconds and best else row for row in found]


def touched(plan: Plan, case: KernelCase, rows: int, tokens: int) -> None:
    """Call everything once, so that it is compiled: failures show when it is measured."""
    try:
        work = case.build(plan.config, rows, tokens, Draw(plan.device, as_dtype(plan.dtype), seed=plan.seed), 1)
    except Exception:
        return
    for _, _, run in _sides(plan, case, work):
        with suppress(Exception):
            run(work.sets[0])


def _sides(plan: Plan, case: KernelCase, work: Work) -> list[tuple[str, bool, Callable]]:
    """(name, is it ours, what to call) of all who can do the work here."""
    found = [
        (implementation.name, True, partial(_forced, case.op, implementation.name, work.run))
        for implementation in OPS[case.op].implementations
        if implementation.obstacle(plan.device) is None
    ]
    if not plan.references:
        found = [side for side in found if side[0] not in SLOW] or found
    return found + [(name, False, run) for name, run in (work.peers | work.parts).items()]


def _forced(op: str, implementation: str, run, inputs):
    """A reference may call other ops: then theirs too."""
    with force(**(dict.fromkeys(OPS, implementation) if implementation == "reference" else {op: implementation})):
        return run(inputs)


def _work(plan: Plan, case: KernelCase, rows: int, tokens: int) -> Work:
    """The work with as many sets of inputs as overflow the caches."""
    make = partial(case.build, plan.config, rows, tokens)
    one = make(Draw(plan.device, as_dtype(plan.dtype), seed=plan.seed), 1)
    wanted = min(MOST_SETS, max(1, CACHE // max(one.cost.bytes, 1))) if plan.device.type == "cuda" else 2
    del one
    return make(Draw(plan.device, as_dtype(plan.dtype), seed=plan.seed), wanted)


def _exact(plan: Plan, case: KernelCase, rows: int, tokens: int) -> list[torch.Tensor]:
    """What the reference makes of the first inputs in float32."""
    draw = Draw(plan.device, as_dtype(plan.dtype), torch.float32, plan.seed)
    work = case.build(plan.config, rows, tokens, draw, 1)
    return [t.detach() for t in outputs(_forced(case.op, "reference", work.run, work.sets[0]))]


def _measured(plan: Plan, case: KernelCase, rows, tokens, work: Work, exact, side: str, ours: bool, run) -> KernelRow:
    row = partial(_row, plan, case, rows, tokens, work.cost, side=side, ours=ours, part=side in work.parts)
    try:
        error = None if side in work.parts else _error(plan, case, rows, tokens, exact, side, ours)
        allowed = LIMITS[plan.dtype] * (GRADIENTS if case.gradients else 1)
        if error is not None and not error <= allowed:
            return row(error=error, note=f"wrong: {error:.2g} off, {allowed:g} is allowed; not timed")
        seconds, note = _time(plan, work, run, graph=side != "reference")
    except Exception as problem:  # of one implementation: the others are still worth a row
        return row(note=_in_short(problem))
    return row(seconds=seconds, error=error, note=note)


def _in_short(problem: Exception) -> str:
    """The kind of an exception and the first line of what it says."""
    said = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {said[0] if said else ''}"[:120]


def _row(plan: Plan, case: KernelCase, rows: int, tokens: int, cost: Cost, **more) -> KernelRow:
    limit = cost.limit(plan.roof.copy_rate, plan.roof.matrix_rate)
    return KernelRow(kernel=case.name, op=case.op, rows=rows, tokens=tokens, cost=cost, limit=limit, **{"seconds": None} | more)


def _error(plan: Plan, case: KernelCase, rows: int, tokens: int, exact, side: str, ours: bool) -> float:
    """Distance of the outputs from the exact ones over their norm, on inputs of its own: states are updated in place."""
    work = case.build(plan.config, rows, tokens, Draw(plan.device, as_dtype(plan.dtype), seed=plan.seed), 1)
    run = partial(_forced, case.op, side, work.run) if ours else work.peers[side]
    found = outputs(run(work.sets[0]))
    several = len(found) > 1 and len(found) == len(exact)
    shared = len(exact) if several else 1
    return max(relative([f.reshape(e.shape)], [e]) for f, e in zip(found[:shared], exact[:shared], strict=True))


def _time(plan: Plan, work: Work, run, graph: bool) -> tuple[Spread, str]:
    """Seconds of one call, and a note where they were not taken as usual."""
    sets = work.sets * max(1, -(-CALLS // len(work.sets))) if plan.device.type == "cuda" else work.sets

    def every():
        for inputs in sets:
            run(inputs)

    for inputs in work.sets:
        run(inputs)  # compiled, and made ready for others, before anything is captured
    captured = _captured(every) if plan.device.type == "cuda" and graph else None
    whole = measure(captured or every, plan.device, plan.repeats, plan.least)
    each = (seconds / len(sets) for seconds in (whole.median, whole.low, whole.high))
    note = "call by call" if plan.device.type == "cuda" and captured is None else ""
    return Spread(*each, whole.rounds, whole.calls * len(sets)), note


def _captured(every):
    """A replay of it; None where it cannot be captured."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            every()
        return graph.replay
    except RuntimeError:
        torch.cuda.synchronize()
        return None
