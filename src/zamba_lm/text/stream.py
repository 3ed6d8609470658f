"""Text as it comes: tokens in, whole characters out."""

import codecs
from collections.abc import Iterable

from zamba_lm.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns a growing list of ids into text, piece by piece, in constant time and memory a token.

    The pieces joined, ``flush`` included, are ``tokenizer.decode(ids, prompt_ids=prompt_ids)``. A character whose bytes are
    spread over several tokens comes out with the last of them; bytes that turn out to be none show as U+FFFD. After a prompt
    the first space of the answer stays. Characters, not glyphs: an emoji joined from several characters may arrive in parts.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Iterable[int] = (), *, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip_space = tokenizer.strips_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in prompt_ids:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that this token completes: often a word, sometimes nothing. Raises ZambaError for an id that no token has."""
        data = self._tokenizer.token_bytes(token_id, skip_special=self._skip_special)
        if data and self._strip_space:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: nothing, or U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)
