"""What is committed works on every machine: no file names a path of the machine it was written on, or a tool found only there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_ONE_MACHINE = re.compile(r"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+)/|(?<!\w)[.]library/")
BUILT = {".git", ".venv", "build", "dist", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}


def shipped_files():
    """Tracked files and those about to be, or, in an unpacked source archive, every file that no tool made."""
    listed = subprocess.run(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not BUILT & set(path.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file()]


def machine_paths(text):
    return [f"line {n}: {line.strip()[:120]}" for n, line in enumerate(text.splitlines(), 1) if OF_ONE_MACHINE.search(line)]


def test_no_file_names_a_path_of_one_machine():
    files = shipped_files()
    assert ROOT / "pyproject.toml" in files
    texts = {path: path.read_bytes() for path in files if path.suffix not in (".safetensors", ".png", ".pt")}
    wrong = {str(path.relative_to(ROOT)): machine_paths(data.decode(errors="replace")) for path, data in texts.items()}
    assert not {path: lines for path, lines in wrong.items() if lines}


@pytest.mark.parametrize(
    "line", ["cd /wo" + "rk/main", "open('/ro" + "ot/.cache/x')", "see /home/" + "ada/models", "../.lib" + "rary/tools"]
)
def test_a_path_of_one_machine_is_seen(line):
    assert machine_paths(line)


@pytest.mark.parametrize(
    "line",
    [
        "path/to/home/file",
        "https://example.org/home/ada/",
        "~/code/",
        "the house/root/ of it",
        "/usr/bin/env",
        "torch.lib" + "rary/",
    ],
)
def test_a_path_of_any_machine_is_free(line):
    assert not machine_paths(line)
