"""From text files to arrays of token ids, once.

A corpus file is a plain ``.npy`` of uint16: documents one after another, each ``<s> text </s>``, or chats in the instruct format.
The highest bit of an entry (ids need 15 bits) says that the token is a target: in documents every token is, in chats what the
assistant says.

    python -m zamba_lm.train.corpus DATA_FOLDER OUT_FOLDER
"""

import argparse
import json
import lzma
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer

TARGET = np.uint16(1 << 15)
BOS, EOS = 1, 2  # relabelled <|im_start|> and <|im_end|> in chats


def read_jsonl(path: Path) -> Iterator[dict]:
    """Objects of a .jsonl or .jsonl.xz file. A truncated archive yields what can be read and says so on standard error."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):  # noqa: B007
                yield json.loads(line)
        except (EOFError, lzma.LZMAError) as error:
            print(f"{path}: stopped after line {number}: {error}", file=sys.stderr)
        except json.JSONDecodeError as error:
            raise ZambaError(f"{path} line {number} is not JSON: {error}") from error


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    """One array a document, every token but the first a target."""
    for ids in tokenizer.encode_batch(texts, bos=False):
        entries = np.array([BOS, *ids, EOS], dtype=np.uint16)
        entries[1:] |= TARGET
        yield entries


def encode_chat(messages: list[dict]) -> np.ndarray:
    """One array a chat, as the chat template renders it; targets are the assistant's words and the token that ends its turn."""
    tokenizer = Tokenizer.mistral(instruct=True)
    entries = np.array(tokenizer.encode_chat(messages, add_generation_prompt=False), dtype=np.uint16)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = len(tokenizer.encode_chat(messages[:turn]))
            end = asked + int(np.argmax(entries[asked:] == EOS))
            entries[asked : end + 1] |= TARGET
    return entries


def encode_file(job: tuple[Path, Path]) -> dict:
    """Write one corpus file; returns its entry in the manifest."""
    source, target = job
    tokenizer = Tokenizer.mistral()
    arrays, n_bytes, documents, texts = [], 0, 0, []
    for record in read_jsonl(source):
        documents += 1
        if "messages" in record:
            arrays.append(encode_chat(record["messages"]))
            continue
        n_bytes += len(record["text"].encode())
        texts.append(record["text"])
        if len(texts) == 512:
            arrays.extend(encode_documents(tokenizer, texts))
            texts = []
    arrays.extend(encode_documents(tokenizer, texts))
    ids = np.concatenate(arrays)
    np.save(target, ids)
    return {"file": target.name, "tokens": int(ids.size), "documents": documents, "bytes": n_bytes}


def read_held_out(folder: Path, file: str) -> tuple[np.ndarray, int]:
    """Entries of a corpus file and the bytes of its text, from the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    n_bytes = next(entry["bytes"] for entry in manifest if entry["file"] == file)
    return np.load(folder / file), n_bytes


def encode_folder(data: Path, out: Path, processes: int | None = None) -> None:
    """Encode every text and chat file of ``data`` into ``out`` with a manifest; ``processes`` None means one a core."""
    sources = [*sorted((data / "text").glob("*.jsonl*")), *sorted((data / "chat").glob("sft.jsonl*"))]
    if not sources:
        raise ZambaError(f"no text/*.jsonl or chat/sft.jsonl under {data}")
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(s, out / (s.name.split(".")[0] + ".npy")) for s in sources]
    with multiprocessing.Pool(processes) as pool:
        manifest = []
        for entry in pool.imap(encode_file, jobs):
            manifest.append(entry)
            print(entry, file=sys.stderr)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with text/*.jsonl[.xz] ({text}) and chat/sft.jsonl[.xz] ({messages})")
    parser.add_argument("out", type=Path, help="folder for the .npy files and manifest.json")
    args = parser.parse_args(argv)
    try:
        encode_folder(args.data, args.out)
    except ZambaError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
