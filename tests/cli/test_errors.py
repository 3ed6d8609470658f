"""What the program says about mistakes, about trouble, and about bugs of ours."""

import subprocess
import sys

import pytest

from zamba_lm.cli import main as program
from zamba_lm.errors import ZambaError


class OutOfMemoryError(RuntimeError):
    """Named like torch's, which is not imported for the look of an error."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZambaError("a is 1,\n  expected 2"), "error: a is 1, expected 2\n"),
        (FileNotFoundError(2, "No such file or directory", "/x/y"), "error: No such file or directory: /x/y\n"),
        (PermissionError(13, "Permission denied", "/x/y"), "error: Permission denied: /x/y\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (MemoryError(), "error: out of memory; "),
        (OutOfMemoryError("CUDA out of memory. Tried ..."), "error: out of memory; "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), "error: out of memory; "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_trouble_is_one_line_and_exit_code_1(run, monkeypatch, error, said):
    def fail(**kwargs):
        raise error

    monkeypatch.setattr(program, "app", fail)
    result = run("info")
    assert result.code == 1 and result.err.startswith(said) and result.err.count("\n") == 1 and result.out == ""


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("shapes disagree")

    monkeypatch.setattr(program, "app", fail)
    monkeypatch.setattr(sys, "argv", ["zamba-lm"])
    with pytest.raises(RuntimeError, match="shapes disagree"):
        program.main()


@pytest.mark.parametrize(
    "args", [["generat", "x"], ["generate", "--modle", "x"], ["generate", "x", "--top-k", "many"], ["convert", "a"]]
)
def test_wrong_usage_is_exit_code_2(run, args):
    result = run(*args)
    assert result.code == 2 and result.out == "" and "Usage:" in result.err


def test_no_arguments_show_the_help(run):
    result = run()
    assert "Usage: zamba-lm" in result.out + result.err


@pytest.mark.parametrize("command", ["generate", "chat", "info", "convert", "version"])
def test_the_help_of_each_command_shows_an_example(run, command):
    result = run(command, "--help")
    assert result.code == 0 and "Example" in result.out and f"zamba-lm {command}" in result.out and result.err == ""


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_version_names_what_is_installed(run, asked):
    result = run(asked)
    assert result.code == 0 and result.out.startswith("zamba-lm ") and "torch " in result.out


def test_help_imports_neither_torch_nor_rich():
    code = """
import sys
from zamba_lm.cli.main import main
sys.argv = ["zamba-lm", "generate", "--help"]
try:
    main()
except SystemExit:
    print([name for name in ("torch", "rich", "tokenizers", "numpy", "huggingface_hub") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: ") and result.stdout.endswith("\n[]\n")
