"""What a run found: one document that JSON can hold, and a table of it for people.

The document's keys are ``KEYS``, those of a row ``Row``'s fields; numbers are in seconds, bytes, bytes/s, operations and
operations/s. Whatever was not measured is null.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from zamba_lm.eval.bench.agree import Agreement
from zamba_lm.eval.bench.cases import Case
from zamba_lm.eval.bench.clock import Spread
from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.roof import Roof

SCHEMA = 1
KEYS = ("schema", "kind", "command", "time", "versions", "device", "roof", "model", "options", "peer", "agreement", "rows")
SIDES = ("zamba-lm", "transformers")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side of one measurement."""

    side: str
    batch: int
    context: int
    seconds: Spread | None  # None: it could not run, and ``note`` says why
    tokens: int  # that one measured call makes or reads
    cost: Cost
    limit: float | None = None  # seconds that the measured rates allow
    peak_bytes: int | None = None
    case: Case | None = None
    speed_up: float | None = None  # how often theirs fits into... ours: their median over ours
    note: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        return self.seconds and self.tokens / self.seconds.median

    @property
    def of_limit(self) -> float | None:
        """The share of the limit that was reached: 1 when nothing could be faster."""
        return self.limit / self.seconds.median if self.limit and self.seconds else None

    def share(self, amount: int, rate: float) -> float | None:
        """Which share of a rate ``amount`` a call comes to."""
        return amount / self.seconds.median / rate if self.seconds else None

    @property
    def reached(self) -> bool | None:
        return self.seconds.median <= self.case.reach if self.case and self.seconds else None

    def plain(self, roof: Roof) -> dict[str, Any]:
        return asdict(self) | {
            "case": self.case and asdict(self.case) | {"name": self.case.name},
            "tokens_per_second": self.tokens_per_second,
            "copy_share": self.share(self.cost.bytes, roof.copy_rate),
            "matrix_share": self.share(self.cost.flops, roof.matrix_rate),
            "of_limit": self.of_limit,
            "reached": self.reached,
        }


@dataclass(kw_only=True)
class Report:
    """A whole run. ``device``, ``model``, ``options``, ``peer``, ``versions`` are plain dictionaries of what they name."""

    kind: str
    command: str
    time: str
    versions: dict[str, Any]
    device: dict[str, Any]
    roof: Roof
    model: dict[str, Any]
    options: dict[str, Any]
    peer: dict[str, Any] | None = None
    agreement: Agreement | None = None
    rows: list[Any] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The document."""
        found: dict[str, Any] = {"schema": SCHEMA} | {key: getattr(self, key) for key in KEYS[1:]}
        found["roof"] = asdict(self.roof)
        found["agreement"] = self.agreement and asdict(self.agreement)
        found["rows"] = [row.plain(self.roof) for row in self.rows]
        return _finite(found)


def _finite(value):
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value
