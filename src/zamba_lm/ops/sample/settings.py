"""How each slot's next token is chosen, on the device, where a captured graph finds it."""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

WORDS = 5  # of 8 bytes a slot: seed, drawn, then (temperature, top_p), (min_p, repetition_penalty), (top_k, nothing)
ROW = struct.Struct("<qqffffi4x")
COOLEST = 1e-6  # temperatures below this are this: nothing but ties is left to chance
LARGEST = torch.finfo(torch.float32).max
SMALLEST = torch.finfo(torch.float32).tiny
LARGEST_K = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Settings:
    """One row a slot, all in one tensor, so that one small copy writes a slot. The properties are views (n) of it."""

    words_n5: Tensor  # int64

    @staticmethod
    def empty(n: int, device: torch.device | str = "cpu") -> "Settings":
        """``n`` slots that are greedy."""
        plain = torch.frombuffer(bytearray(packed()), dtype=torch.int64)
        return Settings(plain.to(device).repeat(n, 1))

    def put(self, slot: int, **row) -> None:
        """Write a slot's row (arguments of ``packed``) without waiting for the device."""
        self.put_all([slot], [row])

    def put_all(self, slots, rows) -> None:
        """Write several slots in one go, row i (a dict of arguments of ``packed``) into slot ``slots[i]``."""
        words = torch.frombuffer(bytearray().join(packed(**row) for row in rows), dtype=torch.int64).view(-1, WORDS)
        if len(slots) == 1:
            self.words_n5[slots[0]].copy_(self._sent(words[0]), non_blocking=True)
        else:
            self.words_n5.index_copy_(0, self._sent(torch.tensor(slots)), self._sent(words))

    def clear(self, slot: int) -> None:
        """Make a slot greedy again."""
        self.put(slot)

    def _sent(self, host: Tensor) -> Tensor:
        """On the device, in stream order. From pinned memory, because a copy from ordinary memory waits for the stream."""
        on_gpu = self.words_n5.device.type == "cuda"
        return host.pin_memory().to(self.words_n5.device, non_blocking=True) if on_gpu else host

    def __len__(self) -> int:
        return len(self.words_n5)

    @property
    def device(self) -> torch.device:
        return self.words_n5.device

    @property
    def seed(self) -> Tensor:
        """int64; a seed from 2^63 on is stored as its negative twin."""
        return self.words_n5[:, 0]

    @property
    def drawn(self) -> Tensor:
        """int64: how many random numbers the slot has used; ``sample`` counts."""
        return self.words_n5[:, 1]

    @property
    def temperature(self) -> Tensor:
        """float32; 0 is greedy."""
        return self._reals[:, 4]

    @property
    def top_p(self) -> Tensor:
        """float32; 1 is off."""
        return self._reals[:, 5]

    @property
    def min_p(self) -> Tensor:
        """float32; 0 is off."""
        return self._reals[:, 6]

    @property
    def repetition_penalty(self) -> Tensor:
        """float32; 1 is off."""
        return self._reals[:, 7]

    @property
    def top_k(self) -> Tensor:
        """int32; 0 is off."""
        return self.words_n5.view(torch.int32)[:, 8]

    @property
    def _reals(self) -> Tensor:
        return self.words_n5.view(torch.float32)


def packed(
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    drawn: int = 0,
) -> bytes:
    """A slot's row. Numbers that float32 would round to 0 or infinity, and so to another meaning, stop short of it."""
    return ROW.pack(
        seed - 2**64 if seed >= 2**63 else seed,
        drawn,
        min(max(temperature, COOLEST), LARGEST) if temperature > 0 else 0.0,
        max(top_p, SMALLEST),
        min_p,
        min(repetition_penalty, LARGEST),
        min(top_k, LARGEST_K),
    )
