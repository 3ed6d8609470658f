"""A conversation as one text, through a chat template.

Templates come with downloaded models, so they run in jinja2's immutable sandbox: they see the messages and nothing of Python.
The sandbox guards data, not time; a template can still loop for long.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from zamba_lm.errors import ZambaError

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
"""Every message between the two chat tokens with its role on the first line."""

KEYS = ("role", "content")
Messages = Sequence[Mapping[str, str]]


class Refusal(Exception):
    """What a template raises through ``raise_exception``."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Access to Python's internals is an error at once; jinja2 alone would print nothing and go on."""

    def unsafe_undefined(self, obj: object, attribute: str):
        raise SecurityError(f"no access to {attribute!r} of a {type(obj).__name__}")


class Generation(Extension):
    """``{% generation %}`` marks the assistant's part for training; when rendering, the marks vanish."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(
    messages: Messages,
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    bos_token: str = IM_START,
    eos_token: str = IM_END,
) -> str:
    """The text of a conversation; without a ``template`` in ChatML.

    messages: dicts with a ``role`` (one word: system, user, assistant, ...) and a ``content``, both strings, and no other keys.
    add_generation_prompt: end with the opening of an assistant message, to ask for an answer.
    Raises ZambaError for a malformed message, a broken template, or one that refuses the conversation.
    """
    check(messages)
    try:
        return _compiled(CHATML if template is None else template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token,
            eos_token=eos_token,
            tools=None,
            documents=None,
        )
    except Refusal as refusal:
        raise ZambaError(f"the chat template refuses this conversation: {refusal}") from refusal
    except jinja2.TemplateSyntaxError as error:
        raise ZambaError(f"the chat template is broken at line {error.lineno}: {error.message}") from error
    except Exception as error:  # Whatever escapes a template is the template's fault: its expressions raise at will.
        raise ZambaError(f"the chat template failed: {type(error).__name__}: {error}") from error


def check(messages: Messages) -> None:
    """Raise ZambaError unless this is a non-empty list of well-formed messages."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ZambaError(f"messages is a {type(messages).__name__}, expected a list of dicts with role and content")
    if not messages:
        raise ZambaError("messages is empty, expected at least one dict with role and content")
    for index, message in enumerate(messages):
        _check_message(f"messages[{index}]", message)


def _check_message(where: str, message: Mapping[str, str]) -> None:
    if not isinstance(message, Mapping):
        raise ZambaError(f"{where} is a {type(message).__name__}, expected a dict with role and content")
    for key in message:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "known are role and content"
            raise ZambaError(f"{where} has the unknown key {key!r}: {hint}")
    for key in KEYS:
        if key not in message:
            raise ZambaError(f"{where} has no {key!r}")
        if not isinstance(message[key], str):
            raise ZambaError(f"{where}: {key} is a {type(message[key]).__name__}, expected a string")
    if not re.fullmatch(r"[\w-]+", message["role"]):
        raise ZambaError(f"{where}: role is {message['role']!r}, expected one word such as system, user or assistant")


def seal(messages: Messages, special: Iterable[str]) -> tuple[list[dict[str, str]], dict[int, str]]:
    """Messages in which nobody's text spells a control token, and the table for ``str.translate`` that undoes it.

    In each spelling found, one letter gives way to a stand-in that occurs in no message. Render, find the control tokens, then
    translate the stretches between them: there stands what people wrote. A part of a control token at the rim of a message is
    broken too, or two messages that a template joins could spell one together.
    """
    special = tuple(special)
    written = set().union(*(message["content"] for message in messages))
    unused = (letter for letter in map(chr, range(0xF0000, 0x10FFFE)) if letter not in written)
    stand_in = dict(zip(sorted(set("".join(special))), unused, strict=False))
    sealed = [{**message, "content": _sealed(message["content"], special, stand_in)} for message in messages]
    return sealed, {ord(stand): letter for letter, stand in stand_in.items()}


def _sealed(text: str, special: tuple[str, ...], stand_in: dict[str, str]) -> str:
    letters = list(text)
    for at in _weak_points(text, special):
        letters[at] = stand_in[letters[at]]
    return "".join(letters)


def _weak_points(text: str, special: tuple[str, ...]) -> set[int]:
    """Places of the letters to change: where control tokens start; the rims, where the text begins or ends within one."""
    whole, tails, heads = _spellings(special)
    points = {found.start() for found in whole.finditer(text)}
    points |= {0} if tails.match(text) else set()
    return points | ({len(text) - 1} if heads.search(text) else set())


@lru_cache(maxsize=16)
def _spellings(special: tuple[str, ...]) -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    """Patterns for control tokens (overlapping ones too), for their endings, for their beginnings at the end of a text."""
    tails = [token[cut:] for token in special for cut in range(1, len(token))]
    heads = [token[:cut] for token in special for cut in range(1, len(token))]
    return re.compile(f"(?={any_of(special)})"), re.compile(any_of(tails)), re.compile(f"(?:{any_of(heads)})\\Z")


def any_of(texts: Iterable[str]) -> str:
    """A pattern for the first of these texts that fits; for none of them, one that never fits."""
    return "|".join(map(re.escape, texts)) or "(?!)"


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    """The template, ready to render; the settings and helpers are those that published chat templates are written for."""
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _refuse(message: object) -> None:
    raise Refusal(message)


def _to_json(value: object, indent: int | None = None) -> str:
    """Plain JSON; jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
