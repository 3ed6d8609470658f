"""What a record says: a text, a chat, or a pair of answers of which one is better."""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from zamba_lm.errors import ZambaError
from zamba_lm.text import chat
from zamba_lm.text.encoder import checked

KINDS = ("text", "chat", "pairs")
FORMS = "{text}, {messages}, {instruction, response}, or {prompt, chosen, rejected}"


@dataclass(frozen=True)
class Text:
    text: str
    kind = "text"

    @property
    def key(self) -> str:
        """What decides whether this is held out."""
        return self.text

    @property
    def n_bytes(self) -> int:
        """Of what is learnt, in UTF-8."""
        return len(self.text.encode())

    def words(self) -> list[str]:
        return [self.text]


@dataclass(frozen=True)
class Chat:
    messages: list[dict]
    kind = "chat"

    @property
    def key(self) -> str:
        """The first question: chats and pairs that ask the same are held out together."""
        return _question(self.messages)

    @property
    def n_bytes(self) -> int:
        return _said(self.messages)

    def words(self) -> list[str]:
        return [m["content"] for m in self.messages]


@dataclass(frozen=True)
class Pair:
    prompt: list[dict]
    chosen: list[dict]
    rejected: list[dict]
    kind = "pairs"

    @property
    def key(self) -> str:
        return _question(self.prompt)

    @property
    def n_bytes(self) -> int:
        return _said(self.chosen) + _said(self.rejected)

    def words(self) -> list[str]:
        return [m["content"] for m in (*self.prompt, *self.chosen)]


def read(record: Mapping, *, text_field: str = "text") -> Text | Chat | Pair:
    """The meaning of a record; other keys than those of its form are passed over. Raises ZambaError where it has none."""
    if "messages" in record:
        return _chat(_messages(record["messages"], "messages"))
    if "chosen" in record or "rejected" in record:
        return _pair(record)
    if record.get("instruction") and text_field not in record:
        return _instruction(record)
    if text_field not in record:
        near = difflib.get_close_matches(text_field, map(str, record), 1)
        hint = f" (but {near[0]!r})" if near else ""
        raise ZambaError(f"no {text_field!r}{hint}: expected {FORMS}; found {sorted(map(str, record))[:8]}")
    if not isinstance(record[text_field], str):
        raise ZambaError(f"{text_field} is a {type(record[text_field]).__name__}, expected a string")
    if not record[text_field].strip():
        raise ZambaError("the text is empty")
    return Text(checked(record[text_field]))


def held_out(key: str, share: float) -> bool:
    """Whether this one belongs to the held-out ``share``: the same answer on every machine, whatever stands around it."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _question(messages: list[dict]) -> str:
    return next((m["content"] for m in messages if m["role"] == "user"), messages[0]["content"]).strip()


def _said(messages: list[dict]) -> int:
    return sum(len(m["content"].encode()) for m in messages if m["role"] == "assistant")


def _messages(value: object, where: str, role: str | None = None) -> list[dict]:
    """Role and content of each message; a string is one message of ``role``."""
    if role and isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value):
        raise ZambaError(f"{where} is a {type(value).__name__}, expected a list of objects with role and content")
    kept = [{key: m[key] for key in chat.KEYS if key in m} for m in value]
    chat.check(kept)
    for message in kept:
        checked(message["content"])
    return kept


def _chat(messages: list[dict]) -> Chat:
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    if not said:
        raise ZambaError(f"no assistant turn among {len(messages)} messages: there is nothing to learn from")
    if not any(text.strip() for text in said):
        raise ZambaError("the assistant says nothing: all its turns are empty")
    return Chat(messages)


def _instruction(record: Mapping) -> Chat:
    answer = record.get("response", record.get("output"))
    context = record.get("context", record.get("input")) or ""
    if not all(isinstance(part, str) for part in (record["instruction"], context, answer)):
        raise ZambaError("instruction, context and response must be strings")
    question = f"{record['instruction']}\n\n{context}" if context.strip() else record["instruction"]
    turns = (("user", question), ("assistant", answer))
    return _chat(_messages([{"role": role, "content": content} for role, content in turns], "instruction"))


def _pair(record: Mapping) -> Pair:
    missing = [key for key in ("prompt", "chosen", "rejected") if key not in record]
    if missing:
        raise ZambaError(f"a pair without {missing[0]!r}: expected prompt, chosen and rejected")
    prompt = _messages(record["prompt"], "prompt", "user")
    answers = {key: _messages(record[key], key, "assistant") for key in ("chosen", "rejected")}
    for key, answer in answers.items():
        if len(answer) > len(prompt) and answer[: len(prompt)] == prompt:  # whole conversations, as some sets have them
            answers[key] = answer = answer[len(prompt) :]
        if answer[0]["role"] != "assistant":
            raise ZambaError(f"{key} begins with a message of the {answer[0]['role']}, expected the assistant's")
    if answers["chosen"] == answers["rejected"]:
        raise ZambaError("chosen and rejected are the same")
    return Pair(prompt, answers["chosen"], answers["rejected"])
