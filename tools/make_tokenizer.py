"""Write the packaged tokenizer.json from the SentencePiece model that mistral-common carries (Apache-2.0).

Run it with ``python tools/make_tokenizer.py [OUT]``; it needs the packages mistral-common, sentencepiece and tokenizers. The
result is the same bytes every time, so a test can compare it with the file in the package.
"""

import argparse
import json
import math
from pathlib import Path

import mistral_common
import sentencepiece

SOURCE = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
TARGET = Path(__file__).parent.parent / "src" / "zamba_lm" / "text" / "mistral-v0.1" / "tokenizer.json"


def last_join(piece: str, scores: dict[str, float]) -> tuple[str, str] | None:
    """The two halves that SentencePiece joins last when it builds this piece; None where it never arrives at the piece.

    It joins the adjacent pair with the best score, the leftmost one of equals. Neighbours in a longer text do not change the
    steps inside a piece that gets built, so one pair a piece is all that a merge table needs.
    """
    parts = list(piece)
    while len(parts) > 2:
        pairs = [(scores.get(parts[i] + parts[i + 1], -math.inf), -i) for i in range(len(parts) - 1)]
        score, at = max(pairs)
        if score == -math.inf:
            return None
        parts[-at : 2 - at] = [parts[-at] + parts[1 - at]]
    return tuple(parts) if len(parts) == 2 else None


def merges(scores: dict[str, float]) -> list[str]:
    """The merge table, best score first.

    All runs of spaces have one and the same score, and a run grows from its left end: there the longer left half goes first.
    """
    joins = [(join, score) for piece, score in scores.items() if (join := last_join(piece, scores)) is not None]
    joins.sort(key=lambda item: (-item[1], -len(item[0][0])))
    return [" ".join(join) for join, _ in joins]


def special(index: int, text: str) -> dict:
    return {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}  # fmt: skip


def tokenizer_file(source: Path) -> dict:
    """The content of tokenizer.json: BPE with byte fallback, a space before the text, bos put in front on request."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(source))
    size = model.get_piece_size()
    pieces = [model.id_to_piece(i) for i in range(size)]
    ordinary = [i for i in range(size) if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(i, pieces[i]) for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": pieces[1], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": pieces[1], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": pieces[1], "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {pieces[1]: {"id": pieces[1], "ids": [1], "tokens": [pieces[1]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges({pieces[i]: model.get_score(i) for i in ordinary}),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=TARGET)
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(tokenizer_file(SOURCE), ensure_ascii=False, separators=(",", ":"))
    out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
