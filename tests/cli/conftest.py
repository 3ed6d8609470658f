"""A small checkpoint, and two ways to run the program: in this process (fast) and as users do (true)."""

import io
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest

from tests.llm.tiny import write_checkpoint
from zamba_lm.cli.main import main


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def run(monkeypatch, capfd):
    """Call the program in this process; standard input is bytes, and never a terminal."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the program replaces it

    def call(*args, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["zamba-lm", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capfd.readouterr()
        return Result(exit.value.code or 0, out, err)

    return call


@pytest.fixture
def process():
    """Run the program as a process of its own; a list of bytes goes in, bytes come out."""

    def call(*args, stdin=b"", **options):
        command = [sys.executable, "-m", "zamba_lm", *map(str, args)]
        return subprocess.run(
            command, input=stdin, capture_output=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options
        )

    return call
