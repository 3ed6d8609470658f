"""``chat``: a conversation through a pipe, and at a terminal where Ctrl-C is pressed."""

import json
import os
import re
import select
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from zamba_lm import LLM, SamplingParams
from zamba_lm.cli.chat import Conversation
from zamba_lm.engine.request import Completion
from zamba_lm.errors import ZambaError

FEW = SamplingParams(max_tokens=6)


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def answer(llm, *messages):
    return llm.chat(list(messages), FEW)[0].text


def chat(run, folder, *args, lines=()):
    return run("chat", "--model", folder, "--max-tokens", 6, *args, stdin="".join(f"{line}\n" for line in lines).encode())


def test_as_a_process_each_line_is_answered_in_the_conversation_so_far(process, folder, llm):
    result = process("chat", "--model", folder, "--max-tokens", 6, stdin=b"Hello\n\nAnd you?\n")
    first = answer(llm, user("Hello"))
    second = answer(llm, user("Hello"), assistant(first), user("And you?"))
    assert (result.returncode, result.stdout.decode()) == (0, f"{first}\n{second}\n")
    figures = result.stderr.decode().splitlines()
    assert len(figures) == 2 and all(re.fullmatch(r"\[6 tokens, [\d.]+ tokens/s\]", line) for line in figures)


def test_prompt_answers_once_and_exits(run, folder, llm):
    result = chat(run, folder, "--prompt", "Hello", lines=["not read"])
    assert (result.code, result.out) == (0, answer(llm, user("Hello")) + "\n")


def test_the_system_prompt_opens_every_conversation(run, folder, llm):
    result = chat(run, folder, "--system", "Be brief.", lines=["Hello", "/reset", "Hello"])
    expected = answer(llm, {"role": "system", "content": "Be brief."}, user("Hello"))
    assert result.out == f"{expected}\n{expected}\n" and expected != answer(llm, user("Hello"))


def test_reset_forgets_and_quit_leaves(run, folder, llm):
    result = chat(run, folder, lines=["Hello", "/reset", "Hello", "/quit", "Hello"])
    expected = answer(llm, user("Hello"))
    assert (result.code, result.out) == (0, f"{expected}\n{expected}\n")


def test_save_writes_the_conversation(run, folder, llm, tmp_path):
    file = tmp_path / "my talk.json"
    file.write_text("old")
    result = chat(run, folder, lines=["Grüße", f"/save {file}"])
    assert result.code == 0 and json.loads(file.read_text()) == [user("Grüße"), assistant(answer(llm, user("Grüße")))]
    assert os.listdir(tmp_path) == [file.name]


def test_help_lists_the_commands(run, folder):
    result = chat(run, folder, lines=["/help"])
    assert result.code == 0 and result.out == "" and all(f"/{name}" in result.err for name in ("reset", "save", "quit"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nope", "unknown command /nope"),
        ("/save", "needs the name of a file"),
        ("/save /nowhere/talk.json", "cannot save to /nowhere"),
    ],
)
def test_a_mistake_costs_its_line_not_the_conversation(run, folder, llm, line, message):
    result = chat(run, folder, lines=["Hello", line, "And you?"])
    first = answer(llm, user("Hello"))
    assert result.code == 1, "a script learns that something went wrong"
    assert result.out == f"{first}\n{answer(llm, user('Hello'), assistant(first), user('And you?'))}\n"
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize("name", [".", "/", "a\0b", "~nobody-of-that-name/a", "a" * 300, f"{__file__}/a"])
def test_a_name_that_cannot_be_saved_to_is_a_mistake(name):
    with pytest.raises(ZambaError, match="cannot save to"):
        Conversation(stream=None).save(name)


def test_a_device_does_not_give_way_to_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ZambaError, match="pipe: it is no ordinary file"):
        Conversation(stream=None).save(str(tmp_path / "pipe"))
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_costs_no_earlier_file(monkeypatch, tmp_path, capsys):
    file = tmp_path / "talk.json"
    file.write_text("old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Exception, match="cannot save to .*talk.json: No space left on device"):
        Conversation(stream=None).save(str(file))
    assert file.read_text() == "old" and os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["--prompt", ""], b"", "the prompt is empty"),
        (["--prompt", " \n"], b"", "the prompt is empty"),
        (["--prompt", "a\udcff"], b"", "the prompt is not UTF-8"),
        ([], b"Hello\nab\xff\n", "line 2 of standard input is not UTF-8: byte 0xff at offset 2"),
        (["--temperature", "-1"], b"", "temperature is -1.0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(run, folder, args, stdin, message):
    result = run("chat", "--model", folder, "--max-tokens", 2, *args, stdin=stdin)
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == 1 and len(errors) == 1 and message in errors[0] and "Traceback" not in result.err


class Interrupted:
    """A stream whose reader presses Ctrl-C after some pieces."""

    def __init__(self, pieces):
        self.pieces, self.text, self.closed = iter(pieces), "", False

    def __iter__(self):
        for piece in self.pieces:
            self.text += piece
            yield piece
        raise KeyboardInterrupt

    def close(self):
        self.closed = True

    @property
    def completion(self):
        return Completion((), tuple(range(len(self.text))), None, text=self.text)


@pytest.mark.parametrize(("pieces", "kept"), [(["Yes", ", of"], [user("Is it?"), assistant("Yes, of")]), ([], [])])
def test_ctrl_c_keeps_what_there_is_of_the_answer(capsys, pieces, kept):
    stream = Interrupted(pieces)
    conversation = Conversation(lambda messages: stream)
    conversation.answer("Is it?")
    shown = capsys.readouterr()
    assert conversation.messages == kept and stream.closed
    assert shown.out == "".join(pieces) + "\n" and "stopped]" in shown.err


class Terminal:
    """The program at a terminal of its own: what is typed, what is shown."""

    def __init__(self, *args):
        self.master, slave = os.openpty()
        own = "import fcntl, runpy, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        code = own + "runpy.run_module('zamba_lm', run_name='__main__')"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"},
        )
        os.close(slave)
        self.shown = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, pattern, seconds=60):
        """Read on until the pattern is shown; what was shown since the last time, the pattern included."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < end, f"{pattern!r} was never shown: {self.shown[-500:]!r}"
            if select.select([self.master], [], [], 0.5)[0]:
                self.shown += os.read(self.master, 4096).decode(errors="replace")
        shown, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return shown

    def leaves_at(self, key):
        """The exit code after a key pressed at the prompt. CPython does not see Ctrl-C between showing the prompt and waiting for
        keys, which takes it microseconds: so press as late as people do, and again if nothing happens."""
        for _ in range(6):
            time.sleep(0.3)
            self.type(key)
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(10)
        raise AssertionError(f"still there: {self.shown!r}")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(folder):
    terminal = Terminal("chat", "--model", folder, "--max-tokens", 100_000, "--override", "max_positions=200000")
    yield terminal
    terminal.close()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_at_a_terminal_ctrl_c_stops_the_answer_then_leaves(terminal, tmp_path):
    file = tmp_path / "talk.json"
    terminal.wait_for("> ")
    terminal.type("Hello\n")
    terminal.wait_for(r"Hello\r?\n")
    terminal.wait_for(r"\w{3}")
    terminal.type("\x03")
    terminal.wait_for(r"tokens/s, stopped\]\r?\n")
    terminal.wait_for("> ")
    terminal.type(f"/save {file}\n")
    terminal.wait_for(r"\[2 messages in ")
    terminal.wait_for("> ")
    assert terminal.leaves_at("\x03") == 0
    question, reply = json.loads(file.read_text())
    assert question == user("Hello") and reply["role"] == "assistant" and reply["content"]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_at_a_terminal_ctrl_d_leaves(terminal):
    terminal.wait_for("> ")
    assert terminal.leaves_at("\x04") == 0
