"""``zamba-lm chat``: a conversation at the terminal or through a pipe."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from zamba_lm.cli import options as o
from zamba_lm.cli import terminal
from zamba_lm.cli.generate import load, settings
from zamba_lm.errors import ZambaError
from zamba_lm.text.whole import replacing

HELP = """/reset       start over
/save FILE   write the conversation to FILE, as JSON
/help        show this
/quit        leave (so does Ctrl-D; Ctrl-C stops an answer, or leaves at the prompt)"""


def chat(
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Answer this once and exit.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before the conversation.")] = None,
    model: o.Model = "zamba2-pebble",
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    backend: o.Backend = "auto",
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
    override: o.Override = None,
) -> None:
    """Talk to an instruct model.

    /reset starts over, /save FILE keeps the conversation, /help lists the rest. Ctrl-C stops an answer. Without a terminal, every
    line of standard input is a message. Answers alone go to standard output.

    \b
    Examples:
      zamba-lm chat
      zamba-lm chat --system "You answer in one sentence." --temperature 0.7
      zamba-lm chat --model Zyphra/Zamba2-2.7B-Instruct --prompt "What is a glacier?"
    """
    if prompt is not None and not terminal.checked(prompt, "the prompt").strip():
        raise ZambaError("the prompt is empty: give a text to answer, or leave --prompt out for a conversation")
    llm = load(model, revision=revision, device=device, dtype=dtype, backend=backend, overrides=o.overrides(override))
    params = settings(
        llm,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or None,
    )
    conversation = Conversation(lambda messages: llm.stream_chat(messages, params), system)
    if prompt is not None:
        conversation.answer(prompt)
    elif sys.stdin.isatty():
        terminal.say(f"{model}, {llm.model.device}. /help lists commands, Ctrl-D leaves.")
        converse(conversation, terminal.typed_lines("> "))
    elif not converse(conversation, terminal.piped_lines()):
        raise typer.Exit(1)


class Conversation:
    """The messages so far, and what the commands do to them. ``stream(messages)`` starts an answer."""

    def __init__(self, stream: Callable, system: str | None = None):
        self._stream = stream
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._opening)

    def answer(self, text: str) -> None:
        """Print the answer as it comes. Ctrl-C keeps what there is of it; a question without any answer is forgotten."""
        clock = terminal.Clock()
        stream = self._stream([*self.messages, {"role": "user", "content": text}])
        stopped = ""
        try:
            terminal.write(stream)
        except KeyboardInterrupt:
            stream.close()
            stopped = ", stopped"
        print(flush=True)
        done = stream.completion
        if done.text:
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": done.text}]
        terminal.say(f"[{clock.rate(len(done.ids))}{stopped}]")

    def reset(self) -> None:
        self.messages = list(self._opening)
        terminal.say("[a new conversation]")

    def save(self, name: str) -> None:
        """Write the messages beside their place, then move them there: a full disk costs no earlier file."""
        if not name:
            raise ZambaError("/save needs the name of a file, as in /save talk.json")
        try:
            file = Path(name).expanduser()
            if file.exists() and not file.is_file():  # a device would give way to the file
                raise ValueError("it is a folder" if file.is_dir() else "it is no ordinary file")
            with replacing(file) as beside:
                beside.write_text(json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:  # a zero byte and an unknown user's home are no OSErrors
            raise ZambaError(f"cannot save to {name[:255]}: {getattr(error, 'strerror', None) or error}") from error
        terminal.say(f"[{len(self.messages)} messages in {file}]")


def converse(conversation: Conversation, lines: Iterable[str]) -> bool:
    """Line by line, until /quit, the end, or Ctrl-C at the prompt. A mistake costs its line, not the conversation.

    Returns whether there was none.
    """
    commands = {
        "/reset": lambda _: conversation.reset(),
        "/save": conversation.save,
        "/help": lambda _: terminal.say(HELP),
    }
    well = True
    try:
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word in ("/quit", "/exit"):
                break
            well &= _attempt(commands, word, rest.strip(), conversation, line)
    except KeyboardInterrupt:
        terminal.say("")
    return well


def _attempt(commands: dict[str, Callable], word: str, rest: str, conversation: Conversation, line: str) -> bool:
    try:
        if word in commands:
            commands[word](rest)
        elif word.startswith("/"):
            raise ZambaError(f"unknown command {word}; /help lists those there are")
        elif word:
            conversation.answer(line)
        return True
    except ZambaError as error:
        terminal.say(f"error: {error}")
        return False
