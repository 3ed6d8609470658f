"""From a token to the bytes it stands for.

Text is the UTF-8 reading of the bytes of its tokens, one after the other. That one sentence defines decoding here, whole or
piecewise, so a stream and a finished answer cannot disagree.
"""

import re

from zamba_lm.errors import ZambaError

SPACE = "\u2581"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def sentencepiece_bytes(piece: str) -> bytes:
    """``▁the`` is ``b" the"``, and the byte piece ``<0xE4>`` is ``b"\\xe4"``."""
    byte = piece.startswith("<0x") and BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies: itself where it prints, else the next one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_LETTERS = _byte_letters()


def byte_level_bytes(piece: str) -> bytes:
    """``Ġthe`` is ``b" the"``; a piece with other letters (an added token) is its own UTF-8."""
    if all(letter in BYTE_LETTERS for letter in piece):
        return bytes(BYTE_LETTERS[letter] for letter in piece)
    return piece.encode()


def decoder_steps(content: dict) -> dict[str, dict]:
    """The steps of the ``decoder`` in a tokenizer.json by their type."""
    decoder = content.get("decoder") or {}
    return {step.get("type", ""): step for step in decoder.get("decoders", [decoder])}


def strips_first_space(content: dict) -> bool:
    """Whether the tokenizer puts a space before a text, which decoding therefore takes away again."""
    steps = decoder_steps(content)
    return "Strip" in steps or steps.get("Metaspace", {}).get("prepend_scheme", "never") != "never"


def byte_table(content: dict, special: dict[str, int]) -> list[bytes | None]:
    """Bytes of every token, by id; None where no token has the id.

    ``content`` is a parsed tokenizer.json, ``special`` the control tokens by their text. Raises ZambaError for vocabularies
    that are neither SentencePiece's nor byte-level.
    """
    steps = decoder_steps(content)
    if not steps.keys() & {"ByteLevel", "ByteFallback", "Metaspace", "Replace"}:
        found = "+".join(filter(None, steps)) or "none"
        raise ZambaError(
            f"tokenizer.json has the decoder {found}: expected SentencePiece's (ByteFallback, Metaspace) or ByteLevel"
        )
    to_bytes = byte_level_bytes if "ByteLevel" in steps else sentencepiece_bytes
    known = {index: to_bytes(piece) for piece, index in _vocabulary(content).items()}
    known |= {token["id"]: token["content"].encode() for token in content.get("added_tokens", [])}
    known |= {index: text.encode() for text, index in special.items()}
    return [known.get(index) for index in range(max(known) + 1)]


def _vocabulary(content: dict) -> dict[str, int]:
    """Piece to id; Unigram models list pieces with scores instead."""
    vocab = content["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}
