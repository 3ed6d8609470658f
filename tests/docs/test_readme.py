"""The README is run: each zamba-lm line in a shell, each Python block as a script, with the embedded model.

Published checkpoints have stand-ins of the same family: small, random, written by zamba-lm itself. Lines about make and pip are
held against the Makefile and pyproject.toml.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docs.pages import FENCE, INLINE_MAKE, PAGES, README, ROOT, blocks, shell_lines
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba
from zamba_lm.text.tokenizer import Tokenizer

PUBLISHED = re.compile(r"(?:Zyphra|path/to)/(Zamba2?)[\w.-]*")
SMALL = {"vocab_size": 32000, "d_model": 32, "n_layers": 3, "hybrid_layers": (1, 2), "d_state": 8, "n_heads": 4, "d_ff": 48}
STAND_INS = {
    "Zamba": ZambaConfig(family="zamba", n_ssm_heads=2, dt_rank=4, **SMALL),
    "Zamba2": ZambaConfig(family="zamba2", n_ssm_heads=4, n_blocks=2, adapter_rank=4, rope_theta=1e4, **SMALL),
}
SHELL = [line for line in shell_lines(README) if "zamba-lm " in line]
CHAINS = [block for block in blocks(README, "bash") if "zamba-lm train " in block]  # each line needs what the ones before made
LINKS = [line for line in SHELL if any(line in chain for chain in CHAINS)]
NOTES = [{"text": "The sea was calm. " * 30 + str(i)} for i in range(20)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"I say {i}, as you asked."}]}
    for i in range(20)
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder that holds a small random checkpoint of each family."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, config in STAND_INS.items():
        Zamba(config).init_weights(seed=0).save(folder / name)
        Tokenizer.mistral().save(folder / name)
    return folder


def run(command, folder, checkpoints, keyboard=None):
    """Run a command in ``folder`` as a user of this environment without a network would, and insist that it succeeds."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    command = [PUBLISHED.sub(lambda m: str(checkpoints / m[1]), word) for word in command]
    result = subprocess.run(
        command, cwd=folder, env=environment, input=keyboard or "", capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


@pytest.mark.parametrize("chain", CHAINS, ids=range(len(CHAINS)))
def test_commands_that_build_on_each_other(chain, tmp_path, checkpoints):
    for name, records in (("notes", NOTES), ("chats", CHATS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run(["bash", "-euo", "pipefail", "-c", chain], tmp_path, checkpoints).stdout.strip()
    assert (tmp_path / "runs/first/model/config.json").exists() and (tmp_path / "runs/chat/model/config.json").exists()


@pytest.mark.parametrize("line", [line for line in SHELL if line not in LINKS])
def test_command(line, tmp_path, checkpoints):
    (tmp_path / "questions.txt").write_text("What is a glacier?\n")
    keyboard = "Hello there.\n/quit\n" if line.startswith("zamba-lm chat") else None
    result = run(["bash", "-euo", "pipefail", "-c", line], tmp_path, checkpoints, keyboard)
    written = [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size and file.name != "questions.txt"]
    said = result.stdout if PUBLISHED.search(line) else result.stdout.strip()  # a random stand-in may write nothing but blanks
    assert said or written, "neither printed nor wrote anything"


@pytest.mark.parametrize("code", blocks(README, "python"), ids=lambda code: code.splitlines()[0])
def test_python(code, tmp_path, checkpoints):
    script = tmp_path / "snippet.py"
    script.write_text(PUBLISHED.sub(lambda m: str(checkpoints / m[1]), code))
    assert run([sys.executable, str(script)], tmp_path, checkpoints).stdout.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_and_pip_lines_name_what_exists(page):
    text = page.read_text()
    assert set(INLINE_MAKE.findall(text)) <= TARGETS
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if "zamba-lm " in line:
            assert line in SHELL, f"{line!r} is run nowhere: such lines belong in the README"
        elif words[0] == "make":
            assert words[1] in TARGETS and all("=" in word for word in words[2:])
        else:
            assert words[:2] == ["pip", "install"], f"nothing here checks {line!r}"
            assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", line)))) <= set(EXTRAS)


def test_every_block_is_of_a_kind_that_is_checked():
    assert {language for language, _ in FENCE.findall(README.read_text())} == {"bash", "python"}
    assert len(SHELL) >= 10 and len(blocks(README, "python")) >= 4


@pytest.mark.parametrize("command", ["generate", "chat", "info", "convert", "bench", "data", "train"])
def test_every_command_is_shown(command):
    assert any(f"zamba-lm {command}" in line for line in SHELL)
