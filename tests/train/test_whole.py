"""What training writes down takes the place of what was there, or leaves it as it was: a full disk makes no half of a file."""

import os

import numpy as np
import pytest

from zamba_lm.train.data import sets, tables
from zamba_lm.train.recipes import folder
from zamba_lm.train.recipes.pretrain import Config
from zamba_lm.train.trainer.journal import Journal
from zamba_lm.train.tuning import reference, rejects

WRITERS = {
    "manifest.json": lambda run: sets._write(run / "manifest.json", {"kind": "text"}),
    "pairs.jsonl": lambda run: tables.write_pairs(run / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    "pairs.jsonl.progress": lambda run: rejects._note(run / "pairs.jsonl.progress", {"done": 1}),
    "scores.npz": lambda run: reference._write(run / "scores.npz", np.zeros((1, 2))),
    "recipe.json": lambda run: folder.save(Config(out=str(run))),
    "log.jsonl": lambda run: Journal(run).cut(1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_or_what_was_there(name, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    WRITERS[name](tmp_path)
    before = (tmp_path / name).read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "replace", full)
        WRITERS[name](tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


def test_pairs_that_cannot_be_written_leave_nothing(tmp_path):
    def found():
        yield {"prompt": "a", "chosen": "b", "rejected": "c"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tables.write_pairs(tmp_path / "pairs.jsonl", found())
    assert not list(tmp_path.iterdir())
