"""Measuring both sides of a case: each alone, after the other has let go of what it held, and an out-of-memory is a row too."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from zamba_lm.eval.bench.agree import Agreement
from zamba_lm.eval.bench.cases import DEVICE, Case
from zamba_lm.eval.bench.clock import Peak, Spread, allocated
from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.decoder import NoRoom
from zamba_lm.eval.bench.report import SIDES, Row
from zamba_lm.eval.bench.roof import Roof

Timed = tuple[Spread, str]  # and a note on how
Run = Callable[[], Timed]


@dataclass(frozen=True)
class Place:
    """Where things are measured: on which device, under which roof, over what is held there all the time."""

    device: torch.device
    name: str
    roof: Roof
    held: int  # bytes of the weights that both sides share

    def limit(self, cost: Cost) -> float:
        return cost.limit(self.roof.copy_rate, self.roof.matrix_rate)


def rows(place: Place, ours: Run | None, theirs: Run | None, case: Case | None, **what) -> list[Row]:
    """Our row and theirs, as far as they are there to run. ``what``: batch, context, tokens, cost of a ``Row``."""
    found = [_row(place, side, run, what) for side, run in zip(SIDES, (ours, theirs)) if run is not None]
    if theirs is not None and place.device.type != "cuda":  # one process, one peak
        found = [replace(row, peak_bytes=None) for row in found]
    return [replace(row, case=case) if row.side == SIDES[0] and DEVICE in place.name else row for row in found]


def _row(place: Place, side: str, run: Callable[[], Timed], what: dict) -> Row:
    apart = max(0, allocated(place.device) - place.held) if side != SIDES[0] else 0
    limit = place.limit(what["cost"])
    try:
        with Peak(place.device, apart) as peak:
            seconds, note = run()
    except (torch.OutOfMemoryError, NoRoom) as error:
        return Row(side=side, seconds=None, limit=limit, note=str(error).split("\n")[0][:100] or "out of memory", **what)
    return Row(side=side, seconds=seconds, limit=limit, peak_bytes=peak.bytes, note=note, **what)


def compared(found: list[Row], agreement: Agreement | None) -> list[Row]:
    """The rows with our speed-up over theirs; without any while the two sides disagree."""
    if agreement is None or not agreement.ok:
        return found
    their = {(row.batch, row.context): row.seconds for row in found if row.side == SIDES[1] and row.seconds}
    return [_with_speed_up(row, their.get((row.batch, row.context))) for row in found]


def _with_speed_up(row: Row, theirs: Spread | None) -> Row:
    if row.side != SIDES[0] or row.seconds is None or theirs is None:
        return row
    return replace(row, speed_up=theirs.median / row.seconds.median)
