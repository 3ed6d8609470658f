"""Records to arrays of token ids that know which of their tokens are targets.

An entry is an id with a mark in its highest bit: "the model is to learn to say this". In a text every token but the first is a
target; in a chat what the assistant says and the token that ends its turn. Entries are uint16 where the vocabulary leaves the
highest bit free, else uint32.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data.records import Chat, Pair, Text


class Document(NamedTuple):
    """What a record became."""

    entries: np.ndarray
    targets: int
    n_bytes: int
    parts: tuple[int, ...] = ()
    """Of a pair: tokens of the prompt and of the chosen answer; the rejected one is the rest."""


def documents(tokenizer: Tokenizer, batch: Sequence[Text]) -> Iterator[Document]:
    """Texts, encoded together: that is what uses all cores where a process has them."""
    for record, entries in zip(batch, texts(tokenizer, [record.text for record in batch])):
        yield Document(entries, len(entries) - 1, record.n_bytes)


def document(tokenizer: Tokenizer, record: Chat | Pair) -> Document:
    """A chat or a pair. ZambaError where the tokenizer has no chat template: its model could not be asked in the same way."""
    if tokenizer.chat_template is None:
        raise ZambaError(f"a {record.kind} needs a tokenizer with a chat template: name an instruct model's with --tokenizer")
    if record.kind == "chat":
        entries = chat(tokenizer, record.messages)
        return Document(entries, int((entries >= mark(entries.dtype)).sum()), record.n_bytes)
    prompt, *answers = pair(tokenizer, record)
    entries = np.array([*prompt, *answers[0], *answers[1]], dtype_for(tokenizer.vocab_size))
    return Document(entries, sum(map(len, answers)), record.n_bytes, (len(prompt), len(answers[0])))


def dtype_for(vocab_size: int) -> np.dtype:
    """The narrowest type that holds an id and the mark."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 15 else np.uint32)


def mark(dtype: np.dtype) -> int:
    """The bit that says "target"."""
    return 1 << (8 * np.dtype(dtype).itemsize - 1)


def texts(tokenizer: Tokenizer, batch: Sequence[str]) -> Iterator[np.ndarray]:
    """Entries of each text: the token that begins a text (where the vocabulary has one), its ids, the token that ends it."""
    dtype = dtype_for(tokenizer.vocab_size)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for ids in tokenizer.encode_batch(batch, bos=False):
        entries = np.array([*begin, *ids, *tokenizer.eos_ids[:1]], dtype)
        entries[1:] |= mark(dtype)
        yield entries


def chat(tokenizer: Tokenizer, messages: Sequence[dict]) -> np.ndarray:
    """Entries of a chat as the tokenizer's template renders it; targets as the head of this file says.

    Raises ZambaError for a template that writes the beginning of a chat otherwise once more follows: no turn has a place then.
    """
    dtype = dtype_for(tokenizer.vocab_size)
    ids = tokenizer.encode_chat(messages, add_generation_prompt=False)
    entries = np.array(ids, dtype)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            start = _place(ids, tokenizer.encode_chat(messages[:turn]) if turn else _opening(tokenizer))
            last = turn + 1 == len(messages)
            upto = ids if last else tokenizer.encode_chat(messages[: turn + 1], add_generation_prompt=False)
            entries[start : _end(ids, start, _place(ids, upto), tokenizer)] |= mark(dtype)
    return entries


def pair(tokenizer: Tokenizer, record: Pair) -> tuple[list[int], list[int], list[int]]:
    """Ids of the prompt, ready to be answered, and of both answers with the token that ends them."""
    prompt = tokenizer.encode_chat(record.prompt)
    answers = []
    for answer in (record.chosen, record.rejected):
        ids = tokenizer.encode_chat([*record.prompt, *answer], add_generation_prompt=False)
        start = _place(ids, prompt)
        answers.append(ids[start : _end(ids, start, len(ids), tokenizer)])
    return prompt, *answers


def _place(ids: list[int], before: list[int]) -> int:
    """Where in a chat stands what comes after its beginning ``before``."""
    if ids[: len(before)] != before:
        raise ZambaError("the chat template renders the beginning of a chat otherwise when more follows: turns cannot be found")
    return len(before)


def _opening(tokenizer: Tokenizer) -> list[int]:
    """What stands before the assistant's words where they are the first: what two such chats have in common."""
    one, other = (
        tokenizer.encode_chat([{"role": "assistant", "content": word}], add_generation_prompt=False) for word in ("7", "Z")
    )
    return one[: next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), 0)]


def _end(ids: list[int], start: int, end: int, tokenizer: Tokenizer) -> int:
    """Behind the last token before ``end`` that ends an answer; ``end`` itself where the template writes none."""
    stops = [at for at in range(start, end) if ids[at] in tokenizer.eos_ids]
    return stops[-1] + 1 if stops else end
