"""Keys and values of earlier tokens, the only memory that grows: one stretch a slot on CPUs, pages of one pool on GPUs."""

import torch

from zamba_lm.ops.packing import on_device

STEP = 256  # tokens by which a stretch grows at the least, and tokens of a page


class Stretches:
    """Slot s owns entry s: attention on a CPU reads it as one view. All grow together, by copying.

    ``stores``: a tensor (2, n, heads, capacity, head_dim) a call, keys first.
    """

    def __init__(self, n_calls: int, n: int, heads: int, head_dim: int, *, device, dtype):
        self.stores = [torch.zeros(2, n, heads, 0, head_dim, device=device, dtype=dtype) for _ in range(n_calls)]
        self.version = 0  # how often memory has moved
        self._rows = torch.arange(n, dtype=torch.int32)[:, None].to(device)

    def reserve(self, totals: dict[int, int]) -> None:
        """Have room for ``totals[slot]`` tokens in each slot named."""
        need = max(totals.values(), default=0)
        if self.stores and need > (have := self.stores[0].shape[3]):
            room = max(need, have * 5 // 4)
            self._replace(-(-room // STEP) * STEP, dim=3)

    def resize(self, n: int) -> None:
        """Have ``n`` slots."""
        self._replace(n, dim=1)
        self._rows = torch.arange(n, dtype=torch.int32)[:, None].to(self._rows.device)

    def entry(self, call: int, start: int, stop: int):
        """Keys and values (S, heads, capacity, head_dim) of slots [start, stop), and the table that leads to them."""
        keys, values = self.stores[call][:, start:stop]
        return keys, values, self._rows[: stop - start]

    def move(self, source: int, target: int, age: int) -> None:
        """Copy the first ``age`` tokens of one slot into another."""
        for store in self.stores:
            store[:, target, :, :age] = store[:, source, :, :age]

    def release(self, slot: int) -> None:
        """A slot is empty again; its room stays its own."""

    def copy(self, slots: list[int], index: torch.Tensor) -> "Stretches":
        """Some slots with memory of their own; ``index``: the same numbers on the device."""
        new = object.__new__(Stretches)
        new.version, new._rows = 0, torch.arange(len(slots), dtype=torch.int32)[:, None].to(self._rows.device)
        new.stores = [store.index_select(1, index) for store in self.stores]
        return new

    def _replace(self, n: int, dim: int) -> None:
        """Have ``n`` entries along ``dim``. One call at a time, so that only one is held twice."""
        self.version += 1
        for call, old in enumerate(self.stores):
            self.stores[call] = with_entries(old, n, dim)


class Pages:
    """Slots own pages of STEP tokens, handed out as they grow, so that memory follows the tokens there are.

    ``stores``: a tensor (2, n_pages, heads, STEP, head_dim) a call; a page number means the same page in every call. ``table``
    (n, M) int32 on the device leads from a slot to its pages. Where tensors had to move, ``version`` counts up: a captured graph
    that holds their addresses is then void.
    """

    def __init__(self, n_calls: int, n: int, heads: int, head_dim: int, *, device, dtype):
        self.stores = [torch.zeros(2, 0, heads, STEP, head_dim, device=device, dtype=dtype) for _ in range(n_calls)]
        self.table = torch.zeros(n, 64, dtype=torch.int32, device=device)
        self.owned: list[list[int]] = [[] for _ in range(n)]
        self.free: list[int] = []
        self.version = 0

    @property
    def n_pages(self) -> int:
        return min((store.shape[1] for store in self.stores), default=0)

    def reserve(self, totals: dict[int, int]) -> None:
        """Have room for ``totals[slot]`` tokens in each slot named; on torch.OutOfMemoryError nothing has changed hands."""
        if not self.stores:
            return
        wanted = {slot: -(-total // STEP) for slot, total in totals.items()}
        missing = {slot: n - len(self.owned[slot]) for slot, n in wanted.items() if n > len(self.owned[slot])}
        if missing:
            self._grow(sum(missing.values()) - len(self.free), max(wanted.values()))
            for slot, n in missing.items():
                self.owned[slot] += [self.free.pop() for _ in range(n)]
                self._write(slot)

    def resize(self, n: int) -> None:
        """Have ``n`` slots; the pages stay where they are."""
        self.version += 1
        self.table = with_entries(self.table, n, dim=0)
        self.owned = (self.owned + [[] for _ in range(n)])[:n]

    def entry(self, call: int, start: int, stop: int):
        """Keys and values of all pages (n_pages, heads, STEP, head_dim), and the table of slots [start, stop)."""
        keys, values = self.stores[call]
        return keys, values, self.table[start:stop]

    def move(self, source: int, target: int, age: int) -> None:
        """Hand the pages of one slot to another."""
        self.release(target)
        self.owned[target], self.owned[source] = self.owned[source], []
        self._write(target)

    def release(self, slot: int) -> None:
        """Take a slot's pages back."""
        self.free += reversed(self.owned[slot])
        self.owned[slot] = []

    def copy(self, slots: list[int], index: torch.Tensor) -> "Pages":
        """Some slots with memory of their own, just the pages that they have; ``index``: the same numbers on the device."""
        new = object.__new__(Pages)
        kept = [page for slot in slots for page in self.owned[slot]]
        names = iter(range(len(kept)))
        new.owned = [[next(names) for _ in self.owned[slot]] for slot in slots]
        pages = on_device(kept, torch.long, self.table.device)
        new.stores = [store.index_select(1, pages) for store in self.stores]
        new.table, new.free, new.version = torch.zeros_like(self.table[index]), [], 0
        for slot in range(len(slots)):
            new._write(slot)
        return new

    def _write(self, slot: int) -> None:
        pages = self.owned[slot]
        if pages:
            self.table[slot, : len(pages)] = on_device(pages, torch.int32, self.table.device)

    def _grow(self, short: int, longest: int) -> None:
        """Have ``short`` more pages and a table of ``longest`` entries a slot."""
        if short > 0:
            before, after = self.n_pages, max(self.n_pages + short, self.n_pages * 5 // 4)
            self.version += 1
            for call, old in enumerate(self.stores):  # one call at a time, so that only one is held twice
                if old.shape[1] < after:
                    self.stores[call] = with_entries(old, after, dim=1)
            self.free[:0] = reversed(range(before, after))
        if longest > self.table.shape[1]:
            self.version += 1
            self.table = with_entries(self.table, max(longest, 2 * self.table.shape[1]), dim=1)


def with_entries(old: torch.Tensor, n: int, dim: int) -> torch.Tensor:
    """A copy with ``n`` entries along ``dim``: those there were, then zeros."""
    new = old.new_zeros(*old.shape[:dim], n, *old.shape[dim + 1 :])
    kept = min(n, old.shape[dim])
    new.narrow(dim, 0, kept).copy_(old.narrow(dim, 0, kept))
    return new
