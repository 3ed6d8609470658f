"""SIGTERM and Ctrl-C: the run saves at the end of its step and leaves. A second one ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Which signal asked this run to stop, 0 for none."""

    def __init__(self) -> None:
        self._heard = 0
        self._asked: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals; the first one gives way to what they did before. Outside the main thread there are none to hear."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def give_back() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def hear(number, frame) -> None:
            self._heard = number
            give_back()

        for number in SIGNALS:
            signal.signal(number, hear)
        try:
            yield
        finally:
            give_back()

    def agreed(self, device: torch.device) -> int:
        """The signal, the same at the same step in every process.

        Of several processes any may have heard it, so they ask each other; the answer is read a step later, when it has long
        arrived and nobody waits for it.
        """
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return self._heard
        before, self._asked = self._asked, self._ask(device)
        if before is None:
            return 0
        answer, arrived = before
        if arrived:
            arrived.synchronize()
        return int(answer)

    def _ask(self, device: torch.device) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        flag = torch.tensor(self._heard, device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        if device.type != "cuda":
            return flag, None
        answer, arrived = flag.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return answer, arrived
