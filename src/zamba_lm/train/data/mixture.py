"""An endless stream of rows from several sets, by weight, whose place can be written down and found again."""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.train.data.rows import Item, Rows

VERSION = 1


@dataclass(frozen=True)
class Stage:
    """Weights that hold for ``rows`` rows of the stream (all ranks together); None: from there on for ever."""

    weights: Mapping[str, float]
    rows: int | None = None


@dataclass
class Position:
    """A place in the stream: all there is to know to go on."""

    rows: int = 0
    stage: int = 0
    stage_rows: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    """Rows of each source since the stage began."""
    at: dict[str, list[int]] = field(default_factory=dict)
    """Epoch and index of each source's next row."""


def replay(new: Mapping[str, float], old: Mapping[str, float], share: float = 0.6) -> dict[str, float]:
    """Weights in which ``old`` data keeps ``share`` and ``new`` data gets the rest (0.6: as the published models annealed)."""
    if not 0 <= share <= 1:
        raise ZambaError(f"share is {share}, expected the part that is replayed, between 0 and 1")
    mixed: dict[str, float] = {}
    for weights, part in ((old, share), (new, 1 - share)):
        total = sum(weights.values())
        for name, weight in weights.items():
            mixed[name] = mixed.get(name, 0.0) + part * weight / total
    return mixed


class Mixture:
    """Rows of named sources, chosen by weight, epoch after epoch of each.

    A weight is a share of rows, hence of tokens. Which source comes next is no matter of chance: it is the one that is furthest
    behind its share, so every stretch of the stream is mixed as the whole is. ``weights`` is one table, or stages with a table
    each. Raises ZambaError for names and weights that make no sense, and for sources that do not go together.
    """

    def __init__(self, sources: Mapping[str, Rows], weights: Mapping[str, float] | Sequence[Stage], *, seed: int = 0):
        self.sources, self.seed = dict(sources), seed
        self.stages = (Stage(weights),) if isinstance(weights, Mapping) else tuple(weights)
        _check_sources(self.sources)
        self._shares = [_shares(stage, self.sources) for stage in self.stages]
        if not self.stages or any(stage.rows is None or stage.rows < 1 for stage in self.stages[:-1]):
            raise ZambaError("every stage but the last needs its number of rows, at least 1")
        self._heads = {name: _unit(seed, name) for name in self.sources}
        self.position = Position(at={name: [0, 0] for name in self.sources})

    @property
    def row(self) -> int:
        """Tokens of a row."""
        return next(iter(self.sources.values())).row

    @property
    def rows(self) -> int:
        """Rows drawn so far."""
        return self.position.rows

    def __iter__(self) -> Iterator[Item]:
        while True:
            yield self.item(*self.advance())

    def advance(self, position: Position | None = None) -> tuple[str, int, int]:
        """Name, epoch and index of the next row; ``position`` (the mixture's own) moves past it."""
        p = position or self.position
        stage = self.stages[p.stage]
        if stage.rows is not None and p.stage_rows == stage.rows and p.stage + 1 < len(self.stages):
            p.stage, p.stage_rows, p.taken = p.stage + 1, 0, {}
        name = self._furthest_behind(p)
        epoch, index = p.at[name]
        p.at[name] = [epoch, index + 1] if index + 1 < self.sources[name].count(epoch) else [epoch + 1, 0]
        p.taken[name] = p.taken.get(name, 0) + 1
        p.rows, p.stage_rows = p.rows + 1, p.stage_rows + 1
        return name, epoch, index

    def item(self, name: str, epoch: int, index: int) -> Item:
        """The row that ``advance`` named."""
        return self.sources[name].item(epoch, index)

    def _furthest_behind(self, p: Position) -> str:
        best, most = "", -math.inf
        for name, share in self._shares[p.stage]:
            behind = share * (p.stage_rows + 1) - p.taken.get(name, 0) + self._heads[name]
            if behind > most:
                best, most = name, behind
        return best

    # places written down

    def state_dict(self, position: Position | None = None) -> dict:
        """The place in the stream as JSON can hold it, and by what to know the sources again."""
        told = {"version": VERSION, **copy.deepcopy(asdict(position or self.position))}
        return told | {"sources": {name: rows.fingerprint for name, rows in self.sources.items()}, "mixture": self._digest()}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from there. Raises ZambaError where sources or weights are not the ones that the state was saved with."""
        self._refuse_other(state, state["sources"], self.sources)
        if state["mixture"] != self._digest():
            raise ZambaError("the saved place belongs to other weights, stages or another seed: take those, or continue_from")
        keys = ("rows", "stage", "stage_rows", "taken", "at")
        self.position = Position(**copy.deepcopy({key: state[key] for key in keys}))

    def continue_from(self, state: Mapping) -> None:
        """Begin this mixture's own stages, with each source where another mixture left it; sources new to it begin at 0.

        For replay after another run: it goes on with rows that were not seen yet.
        """
        known = {name: rows for name, rows in self.sources.items() if name in state["sources"]}
        self._refuse_other(state, {name: state["sources"][name] for name in known}, known)
        self.position = Position(at={name: list(state["at"].get(name, [0, 0])) for name in self.sources})

    def _refuse_other(self, state: Mapping, saved: Mapping[str, str], own: Mapping[str, Rows]) -> None:
        if state.get("version") != VERSION:
            raise ZambaError(f"the saved place has version {state.get('version')}, this program reads {VERSION}")
        for name in {**saved, **own}:
            if name not in saved or name not in own:
                where, other = ("this mixture", own) if name not in own else ("the saved place", saved)
                raise ZambaError(f"{where} has no source {name!r}{nearest(name, other)}: both must have the same")
            if saved[name] != own[name].fingerprint:
                folder = own[name].shards.folder
                raise ZambaError(
                    f"source {name!r} ({folder}) is not what it was when the place was saved: take the same documents, row, seed "
                    "and packing"
                )

    def _digest(self) -> str:
        told = [self.seed, [[dict(stage.weights), stage.rows] for stage in self.stages]]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _shares(stage: Stage, sources: Mapping[str, Rows]) -> list[tuple[str, float]]:
    for name, weight in stage.weights.items():
        if name not in sources:
            raise ZambaError(f"the weights name {name!r}{nearest(name, sources)}; sources are {', '.join(sources)}")
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise ZambaError(f"the weight of {name!r} is {weight!r}, expected a number, 0 or more")
    total = sum(stage.weights.values())
    if not total:
        raise ZambaError(f"all weights are zero in {dict(stage.weights)}: at least one source must count")
    return [(name, weight / total) for name, weight in sorted(stage.weights.items()) if weight]


def _check_sources(sources: Mapping[str, Rows]) -> None:
    if not sources:
        raise ZambaError("a mixture without sources: give at least one set of rows")
    (first_name, first), *others = sources.items()
    for name, rows in others:
        if rows.row != first.row:
            raise ZambaError(f"{first_name!r} has rows of {first.row} tokens and {name!r} of {rows.row}: give them one size")
        if rows.shards.tokenizer["sha256"] != first.shards.tokenizer["sha256"]:
            both = f"{first.shards.folder} and {rows.shards.folder}"
            raise ZambaError(f"{both} were made with different tokenizers: tokenise them with the model's")


def _unit(seed: int, name: str) -> float:
    """A number in [0, 1) for each source: who comes first is the seed's choice."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=6).digest(), "big") / 2**48
