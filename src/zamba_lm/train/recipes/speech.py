"""Which tokenizer a run trains with, and writes beside the finished model: the one that wrote the ids it reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data.shards import TOKENIZER, read_manifest, refuse_other
from zamba_lm.train.recipes.origin import origin
from zamba_lm.train.recipes.text import place

CHAT = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]


def tokenizer_of(config: Any) -> Tokenizer:
    """The tokenizer of the chats or pairs that are read; without them the one beside the weights, or that of the texts.

    Chats bring their tokenizer along because a model taught by them must be asked in the same way: a base model has no chat
    template of its own. Raises ZambaError where the weights and the chats, or two sets of chats, speak differently.
    """
    folder = origin(config.start) if config.start else None
    spoken = Tokenizer.load(folder) if folder and Tokenizer.lies_in(folder) else None
    written = None
    for where in config.data.sources.values():
        name, _ = place(config.data, where)
        manifest = read_manifest(name)
        if manifest["kind"] == "text":
            written = written or Tokenizer.load(name / TOKENIZER)
        else:
            spoken = _agreed(spoken, name, manifest["tokenizer"])
    return spoken or written or Tokenizer.mistral()


def speaking(shape: ZambaConfig, tokenizer: Tokenizer) -> ZambaConfig:
    """The shape of a model that begins from nothing, whose control tokens are the tokenizer's."""
    if (shape.bos_id, shape.eos_ids) == (tokenizer.bos_id, tokenizer.eos_ids):
        return shape
    pad_id = shape.pad_id if shape.pad_id in tokenizer.special_ids else None
    eos_id = tokenizer.eos_ids if len(tokenizer.eos_ids) > 1 else next(iter(tokenizer.eos_ids), None)
    return replace(shape, bos_id=tokenizer.bos_id, eos_id=eos_id, pad_id=pad_id)


def _agreed(spoken: Tokenizer | None, folder: Path, made_with: dict) -> Tokenizer:
    """The tokenizer of a set of chats; ZambaError where the model, or a set before it, has another or writes chats otherwise."""
    own = Tokenizer.load(folder / TOKENIZER)
    if spoken is None:
        return own
    refuse_other(folder, made_with, spoken)
    if spoken.chat_template and spoken.encode_chat(CHAT) != own.encode_chat(CHAT):
        raise ZambaError(
            f"{folder} writes chats otherwise than the model's chat template does: tokenise them again with --tokenizer and the "
            "model's folder"
        )
    return own
