"""Text to ids and back.

Text is always text: what somebody writes never turns into a control token unless the caller asks for it (encoder.py encodes the
stretches between control tokens). Decoding joins the bytes of the tokens and reads them as UTF-8 (pieces.py).
"""

import codecs
import json
import operator
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from zamba_lm.errors import ZambaError
from zamba_lm.text import chat, definition, pieces, save
from zamba_lm.text.definition import Definition
from zamba_lm.text.encoder import Encoder


class Tokenizer:
    """One vocabulary with its control tokens; immutable, so threads may share it.

    ``bos_id`` begins a text (None: this vocabulary has no such token), ``eos_ids`` end an answer, ``chat_template`` is None
    where the model brought none, ``special`` maps control tokens to ids, ``vocab_size`` is the largest id plus one.
    """

    def __init__(self, parts: Definition):
        content = json.loads(parts.source)
        self._parts = parts
        self._encoder = Encoder(parts.source, content, parts.special)
        self._bytes = pieces.byte_table(content, parts.special)
        self._control = re.compile(f"({chat.any_of(sorted(parts.special, key=len, reverse=True))})")
        self.strips_first_space = pieces.strips_first_space(content)
        self.special, self.special_ids = parts.special, frozenset(parts.special.values())
        self.bos_id, self.eos_ids, self.chat_template = parts.bos_id, parts.eos_ids, parts.chat_template
        self.vocab_size = len(self._bytes)

    @staticmethod
    def load(folder: Path | str) -> "Tokenizer":
        """The tokenizer of a model folder; the packaged Mistral v0.1 one where the folder has no tokenizer.json.

        Raises ZambaError where its files are missing, broken or contradict each other.
        """
        try:
            return Tokenizer(definition.read(Path(folder)))
        except ZambaError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise ZambaError(f"{folder}: the tokenizer files are malformed ({problem}): fetch them again") from error

    @staticmethod
    def lies_in(folder: Path | str) -> bool:
        """Whether a folder brings a tokenizer, be it only names for the packaged one."""
        return any(Path(folder).glob("tokenizer[._]*"))

    @staticmethod
    def mistral(*, instruct: bool = False) -> "Tokenizer":
        """The packaged tokenizer; ``instruct`` names ids 1 and 2 ``<|im_start|>`` and ``<|im_end|>`` and brings ChatML."""
        return _mistral(bool(instruct))

    def encode(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """Ids of a text, ``bos_id`` in front if asked for.

        With ``special``, control tokens spelled in the text become their ids; without, they are ordinary text. Raises ZambaError
        for a text with lone surrogates, which no UTF-8 holds.
        """
        return self._start(bos) + (self._encode_spelled(text) if special else self._encoder.encode(text))

    def encode_batch(self, texts: Sequence[str], *, bos: bool = True) -> list[list[int]]:
        """``encode`` of many texts, on all cores."""
        start = self._start(bos)
        return [start + ids for ids in self._encoder.encode_batch(texts)]

    def encode_chat(self, messages: chat.Messages, *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, ready to be answered; nothing is added to what the template writes.

        The template's control tokens become their ids. The same letters in a message stay text: nobody can end his own turn and
        speak as somebody else. Raises ZambaError as ``chat.render`` does.
        """
        chat.check(messages)
        sealed, unseal = chat.seal(messages, self.special)
        return self._encode_spelled(self._render(sealed, add_generation_prompt), unseal)

    def render_chat(self, messages: chat.Messages, *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, through this model's template (ChatML where it has none)."""
        chat.check(messages)
        return self._render(messages, add_generation_prompt)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, prompt_ids: Iterable[int] = ()) -> str:
        """The text of the ids; bytes that are no UTF-8 show as U+FFFD.

        skip_special: leave control tokens out. prompt_ids: what stands before the ids; a text that continues something keeps its
        first space. Raises ZambaError for an id that no token has.
        """
        before = self._joined(prompt_ids, skip_special)
        text = self._joined(ids, skip_special)
        if self.strips_first_space and not before:
            text = text.removeprefix(b" ")
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(before)
        return decoder.decode(text, final=True)

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """The bytes a token stands for; none for a control token when those are skipped.

        Raises ZambaError for an id that no token has.
        """
        index = self._index(token_id)
        return b"" if skip_special and index in self.special_ids else self._bytes[index]

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json, for us and for transformers' AutoTokenizer."""
        save.write(self._parts, Path(folder))

    def _start(self, bos: bool) -> list[int]:
        return [self.bos_id] if bos and self.bos_id is not None else []

    def _render(self, messages: chat.Messages, add_generation_prompt: bool) -> str:
        names = self._parts.names()
        return chat.render(
            messages,
            template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            bos_token=names.get("bos_token", ""),
            eos_token=names.get("eos_token", ""),
        )

    def _encode_spelled(self, text: str, unseal: dict[int, str] | None = None) -> list[int]:
        """Ids of a text in which control tokens count; ``unseal`` gives the stretches between them their letters back."""
        ids: list[int] = []
        for at, stretch in enumerate(self._control.split(text)):
            if at % 2:
                ids.append(self.special[stretch])
            elif stretch:
                ids += self._encoder.encode(stretch.translate(unseal or {}), continues=at > 0)
        return ids

    def _joined(self, ids: Iterable[int], skip_special: bool) -> bytes:
        indices = [self._index(token_id) for token_id in ids]
        return b"".join(self._bytes[i] for i in indices if not (skip_special and i in self.special_ids))

    def _index(self, token_id: int) -> int:
        try:
            index = operator.index(token_id)
        except TypeError as error:
            raise ZambaError(f"token id {token_id!r} is a {type(token_id).__name__}, expected an integer") from error
        if not 0 <= index < self.vocab_size or self._bytes[index] is None:
            last = self.vocab_size - 1
            raise ZambaError(f"token id {index} is outside the vocabulary of {self.vocab_size} tokens (ids 0 to {last})")
        return index


@lru_cache(maxsize=2)
def _mistral(instruct: bool) -> Tokenizer:
    return Tokenizer(definition.mistral(instruct=instruct))
