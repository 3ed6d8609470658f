"""Files of text, chats and preference pairs to shards of token ids, once; shards to an endless stream of packed rows.

``sources`` and ``files`` read, ``records`` and ``encode`` turn a line into token ids, ``sets`` does that for whole sets with
``shards`` as its result. ``packing`` and ``rows`` lay documents into rows of one size, ``mixture`` mixes the rows of several
sets, ``stream`` hands them to a trainer, ``tables`` makes `datasets` tables of chats and pairs, ``held_out`` measures bits per
byte. Names are imported when first used: a process that only tokenises needs no torch.
"""

from importlib import import_module

_HOME = {
    "Mixture": "mixture",
    "Options": "sets",
    "Rows": "rows",
    "Shards": "shards",
    "Stage": "mixture",
    "Stream": "stream",
    "bits_by_source": "held_out",
    "chats": "tables",
    "collate": "stream",
    "pair_messages": "tables",
    "pairs": "tables",
    "replay": "mixture",
    "tokenise": "sets",
    "write_pairs": "tables",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'zamba_lm.train.data' has no attribute {name!r}")
    return getattr(import_module(f"zamba_lm.train.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
