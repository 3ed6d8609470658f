"""Batches for a run: read ahead by a thread, already on their way to the device, with the place in the data that goes with each.

What a checkpoint must remember is the place behind the last batch that the trainer has taken, not behind what was read ahead;
so every batch travels with the place behind it.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Stream(Protocol):
    """Endless rows of this process, with a place in them that JSON can hold."""

    def __iter__(self) -> Iterator[dict]: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True)
class Phase:
    """``batches`` batches of ``rows`` rows each from ``stream``; None: without end. ``processes`` take as many at a time each."""

    stream: Stream
    rows: int
    batches: int | None = None
    processes: int = 1

    @property
    def at_a_time(self) -> int:
        """Rows of all processes."""
        return self.rows * self.processes


class Feed:
    """An endless iterable of batches for one process. ``collate`` makes a batch of rows; ``ahead`` are ready beforehand."""

    def __init__(
        self, phases: Sequence[Phase], collate: Callable[[list], dict[str, Any]], *, device: torch.device, ahead: int = 4
    ):
        self._phases, self._collate, self._device, self._ahead = list(phases), collate, device, ahead
        self._place = self._start = {"phase": 0, "taken": 0, "stream": None}
        self._thread: threading.Thread | None = None

    def state_dict(self) -> dict:
        """The place behind the last batch that was taken, as JSON."""
        return self._place

    def load_state_dict(self, state: dict) -> None:
        self._place = self._start = state

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.close()
        ready: queue.Queue = queue.Queue(self._ahead)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(ready, self._done), daemon=True)
        self._thread.start()
        while True:
            found = ready.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return
            batch, self._place = found
            yield {key: self._move(value) for key, value in batch.items()}

    def close(self) -> None:
        """End the thread."""
        if self._thread:
            self._done.set()
            self._thread.join()
            self._thread = None

    def _move(self, value):
        return value.to(self._device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    # the thread

    def _read(self, ready: queue.Queue, done: threading.Event) -> None:
        try:
            for found in self._batches():
                if not _put(ready, found, done):
                    return
            _put(ready, None, done)
        except BaseException as error:  # told where the batch is wanted
            _put(ready, error, done)

    def _batches(self) -> Iterator[tuple[dict, dict]]:
        first, taken, state = self._start["phase"], self._start["taken"], self._start["stream"]
        for number, phase in enumerate(self._phases[first:], first):
            if state is not None:
                phase.stream.load_state_dict(state)
                taken = taken * self._start.get("at_a_time", phase.at_a_time) // phase.at_a_time  # there may be others now
            rows = iter(phase.stream)
            while phase.batches is None or taken < phase.batches:
                batch = self._collate([next(rows) for _ in range(phase.rows)])
                taken += 1
                place = {"phase": number, "taken": taken, "at_a_time": phase.at_a_time, "stream": phase.stream.state_dict()}
                yield self._pinned(batch), place
            taken, state = 0, None

    def _pinned(self, batch: dict) -> dict:
        """Copies to a GPU do not wait when they come from pinned memory."""
        if self._device.type != "cuda":
            return batch
        return {key: value.pin_memory() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def _put(ready: queue.Queue, found, done: threading.Event) -> bool:
    """False when nobody wants it any more."""
    while not done.is_set():
        try:
            ready.put(found, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False
