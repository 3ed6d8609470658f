"""Who sits in which slot of one state: sequences that decode first, then those still reading their prompts, without holes."""

from collections.abc import Callable, Iterator

import torch

from zamba_lm.engine.sequence import Sequence
from zamba_lm.model.kv import STEP
from zamba_lm.model.state import State
from zamba_lm.model.zamba import Zamba


class Pool:
    """Slots of a ``State``. ``decoding`` sit in slots [0, n), ``reading`` in [n, n + k), so a pass over either takes one view.

    Memory follows demand: a single request holds a single slot, and room grows (at least doubling, up to ``max_slots``) when more
    come together. A slot is emptied when it is handed out, so nobody inherits what an earlier sequence left.
    """

    def __init__(self, model: Zamba, max_slots: int, ssm_dtype: torch.dtype = torch.float32):
        self.model, self.max_slots, self.ssm_dtype = model, max_slots, ssm_dtype
        self.decoding: list[Sequence] = []
        self.reading: list[Sequence] = []
        self.spare = 0  # slots behind the last that nobody sits in, for a runner's own use
        self.moved: Callable[[int, int], None] = lambda source, target: None  # told when a slot takes another's place
        self._state: State | None = None
        self._views: dict[tuple[int, int], State] = {}

    def __len__(self) -> int:
        return len(self.decoding) + len(self.reading)

    def __iter__(self) -> Iterator[Sequence]:
        """Who sits here, in slot order."""
        return iter(self.decoding + self.reading)

    @property
    def capacity(self) -> int:
        """Slots there are at present."""
        return 0 if self._state is None else len(self._state) - self.spare

    @property
    def state(self) -> State:
        """All slots; there are some from ``make_room`` until ``clear``."""
        assert self._state is not None, "make_room comes first"
        return self._state

    def make_room(self, wanted: int) -> None:
        """Have slots for ``wanted`` sequences, or for ``max_slots`` if that is fewer."""
        wanted = min(wanted, self.max_slots)
        if len(self) == 0 and not wanted <= self.capacity <= 2 * wanted:
            self._replace(None)  # before the new one is made, so that they need not fit together
            self._replace(self.model.new_state(wanted + self.spare, ssm_dtype=self.ssm_dtype))
            if self.spare:  # its page first, so that those of the first sequence are all there are
                self.state.slots(wanted, wanted + self.spare).reserve((1,) * self.spare)
        elif wanted > self.capacity:
            self.state.resize(min(max(wanted, 2 * self.capacity), self.max_slots) + self.spare)
            self._views = {}

    def admit(self, sequence: Sequence) -> None:
        """Give a sequence the next slot, emptied, with room for its prompt and the first tokens of its answer."""
        slot = len(self)
        self.reading.append(sequence)
        self.state.reset(slot)
        answer = min(sequence.request.params.max_tokens - sequence.n_new, STEP)
        self.state.slots(slot, slot + 1).reserve((len(sequence.ids) + answer,))

    def promote(self, sequence: Sequence) -> None:
        """The first of the readers has read its whole prompt: it decodes from now on, in the slot it has."""
        assert self.reading[0] is sequence, "prompts are read first come, first served"
        self.decoding.append(self.reading.pop(0))

    def release(self, sequence: Sequence) -> None:
        """Free a slot. The last of its group moves into the hole, and the last reader into the hole between the groups."""
        if sequence in self.decoding:
            hole = self._fill(self.decoding, sequence, first=0)
            if self.reading:
                self._move(hole + len(self.reading), hole)
                self.reading.insert(0, self.reading.pop())
        else:
            self._fill(self.reading, sequence, first=len(self.decoding))

    def _fill(self, group: list[Sequence], leaver: Sequence, first: int) -> int:
        """Take ``leaver`` out of ``group``, whose slots start at ``first``; the slot that is free in the end."""
        at, last = group.index(leaver), len(group) - 1
        if at != last:
            self._move(first + last, first + at)
        group[at] = group[last]
        group.pop()
        return first + last

    def _move(self, source: int, target: int) -> None:
        self.state.move(source, target)
        self.moved(source, target)

    def clear(self) -> list[Sequence]:
        """Empty every slot and forget the state, which a broken-off pass may have left half-updated; who sat there, in order."""
        sat = list(self)
        self.decoding, self.reading = [], []
        self._replace(None)
        return sat

    def view(self, start: int, stop: int) -> State:
        """Slots [start, stop); kept, because decoding asks for the same one again and again."""
        if (start, stop) not in self._views:
            self._views[start, stop] = self.state.slots(start, stop)
        return self._views[start, stop]

    def _replace(self, state: State | None) -> None:
        self._state, self._views = state, {}
