"""docs/data.md is run: its commands on small files of the names it gives, its Python as one program."""

import json
import lzma
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.train.data.conftest import chat, pair, text
from zamba_lm.cli.main import main

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """What the commands ask for, in the folder they run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for part in ("part-00", "part-15"):
        lines = "".join(json.dumps({"text": text(i, 200)}) + "\n" for i in range(200))
        (tmp_path / "text" / f"{part}.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    for name, make in (("chats", chat), ("pairs", pair)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(make(i)) + "\n" for i in range(200)))


def test_the_page_is_true(files, monkeypatch, capsys):
    shown = re.findall(r"^    (zamba-lm .*)$", PAGE, re.MULTILINE)
    assert len(shown) >= 5
    for line in shown:
        one = ["--processes", "1"] if "tokenise" in line else []
        monkeypatch.setattr(sys, "argv", [*shlex.split(line), *one])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, line
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["batch"]["input_ids"].shape == (4, 2048) and names["state"]["rows"] == 4
    assert sum(names["item"]["lengths"]) == 2048 and "padding" in capsys.readouterr().out
