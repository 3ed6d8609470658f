"""Plain text to ids, by the `tokenizers` library."""

import json
import uuid
from collections.abc import Sequence

import tokenizers

from zamba_lm.errors import ZambaError


class Encoder:
    """Encodes text in which nothing is a control token, whatever it spells.

    ``source`` is the text of a tokenizer.json, ``content`` the same parsed, ``special`` its control tokens by their text. Raises
    ZambaError where the library cannot read it.
    """

    def __init__(self, source: str, content: dict, special: dict[str, int]):
        spelled = [merge for merge in _merges(content) if _joined(merge) in special]
        self._library = _build(_without(content, spelled) if spelled else source)
        self._library.encode_special_tokens = True
        _check_added(self._library, content)
        # Stands before a stretch that continues a text, so that the library sees it as not the first. Nobody can guess it.
        self._anchor = f"\ufdd0{uuid.uuid4().hex}\ufdd0"
        self._library.add_tokens([tokenizers.AddedToken(self._anchor, normalized=False)])

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text; one that ``continues`` stands after a control token. Raises ZambaError for lone surrogates."""
        if continues:
            return self._library.encode(self._anchor + checked(text), add_special_tokens=False).ids[1:]
        return self._library.encode(checked(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, worked out in parallel."""
        encoded = self._library.encode_batch_fast([checked(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encoded]


def checked(text: str) -> str:
    """The text itself, if UTF-8 can hold it; ZambaError for something else than a string and for lone surrogates."""
    if not isinstance(text, str):
        raise ZambaError(f"the text is a {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ZambaError(
            f"the text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: "
            "it is not valid Unicode; read it again with errors='replace'"
        ) from error
    return text


def _merges(content: dict) -> list:
    return content.get("model", {}).get("merges") or []


def _without(content: dict, spelled: list) -> str:
    """The same tokenizer.json without the merges that spell a control token out of ordinary letters."""
    kept = [merge for merge in _merges(content) if merge not in spelled]
    return json.dumps({**content, "model": {**content["model"], "merges": kept}}, ensure_ascii=False)


def _joined(merge: str | list[str]) -> str:
    """Merge tables have two spellings: one string with a space between the halves, or a list of the halves."""
    return merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)


def _build(source: str) -> tokenizers.Tokenizer:
    try:
        library = tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # The library raises bare Exceptions.
        raise ZambaError(f"tokenizer.json cannot be read ({error}): fetch the file again") from error
    library.no_truncation()
    library.no_padding()
    return library


def _check_added(library: tokenizers.Tokenizer, content: dict) -> None:
    """The library numbers added tokens itself and skips gaps; ids other than the file's would be silent nonsense."""
    for token in content.get("added_tokens") or []:
        if not token.get("special") and library.token_to_id(token["content"]) != token["id"]:
            raise ZambaError(
                f"tokenizer.json gives the added token {token['content']!r} the id {token['id']}, where the library makes it "
                f"{library.token_to_id(token['content'])}: number added tokens without gaps"
            )
