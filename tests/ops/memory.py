"""How much memory tensors hold, counted to the byte, so that nothing else in the process or on the machine disturbs it."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Bytes of the tensors made inside the block: ``now`` alive, ``peak`` at the worst moment, ``largest`` those of the largest.

    What an operation of torch uses and frees inside itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {id(v.untyped_storage()) for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and id(value.untyped_storage()) not in given:
                self._hold(value.untyped_storage())
        return result

    def _hold(self, storage):
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, size)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self._known.discard(key)
        self.now -= size
