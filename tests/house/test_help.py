"""The command line answers at once: its help names every command and imports nothing heavy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("generate", "chat", "info", "convert", "bench", "data", "train")
HEAVY = ("torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "numpy", "jinja2")
PROGRAM = Path(sys.executable).parent / "zamba-lm"
CPU_SECONDS = 0.3  # of the process itself: wall time would measure who else is using the machine


def zamba_lm(*args):
    return subprocess.run([PROGRAM, *args], capture_output=True, text=True, timeout=60)


def imported_by(code):
    """Top-level packages in sys.modules of a fresh interpreter after ``code``."""
    after = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\nMODULES', *sys.modules)"
    output = subprocess.run([sys.executable, "-c", after], capture_output=True, text=True, timeout=60, check=True).stdout
    return {name.split(".")[0] for name in output.rpartition("MODULES")[2].split()}


def cpu_seconds(*command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_lists_every_command():
    result = zamba_lm("--help")
    assert result.returncode == 0 and not result.stderr
    assert [name for name in COMMANDS if name not in result.stdout] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = zamba_lm(command, "--help")
    assert result.returncode == 0 and command in result.stdout and len(result.stdout.splitlines()) > 5


@pytest.mark.parametrize("args", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(args):
    modules = imported_by(f"sys.argv = {['zamba-lm', *args]!r}; from zamba_lm.cli.main import main; main()")
    assert "zamba_lm" in modules and not modules & set(HEAVY)


def test_importing_the_package_imports_nothing_heavy():
    assert not imported_by("import zamba_lm") & set(HEAVY)


def test_help_answers_at_once():
    assert min(cpu_seconds(PROGRAM, "--help") for _ in range(3)) < CPU_SECONDS


@pytest.mark.parametrize("args", [["generat"], ["generate", "--modle", "x"], ["info", "--no-such-option"]], ids=" ".join)
def test_wrong_usage_exits_with_2(args):
    result = zamba_lm(*args)
    assert result.returncode == 2 and result.stderr and "Traceback" not in result.stderr
