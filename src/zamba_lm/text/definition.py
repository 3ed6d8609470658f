"""What a tokenizer is, read from the files of a model folder: vocabulary, control tokens, chat template.

The ids of control tokens are taken from the files, never assumed: instruct models relabel ids 1 and 2, and their early uploads
put the chat tokens at 32001 and 32002 instead.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from zamba_lm.errors import ZambaError
from zamba_lm.text.chat import CHATML, IM_END, IM_START

PACKAGED = Path(__file__).parent / "mistral-v0.1" / "tokenizer.json"
BOS_NAMES = ("<s>", IM_START)
EOS_NAMES = (IM_END, "</s>", "<|endoftext|>")
MISTRAL_SHA256 = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"  # of tokenizer.model
PLAIN_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@dataclass(frozen=True, kw_only=True)
class Definition:
    """All that a Tokenizer is built from."""

    source: str
    """tokenizer.json as text, with the names of control tokens that hold."""
    special: dict[str, int]
    """Control tokens: their text and their id."""
    bos_id: int | None
    eos_ids: tuple[int, ...]
    """The ids that end an answer; the first one is the tokenizer's eos token."""
    chat_template: str | None

    def names(self) -> dict[str, str]:
        """The control tokens by their role, under transformers' names; ``<unk>`` also pads."""
        name_of = {index: name for name, index in self.special.items()}
        roles = {"bos_token": self.bos_id, "eos_token": next(iter(self.eos_ids), None)}
        roles |= dict.fromkeys(("unk_token", "pad_token"), self.special.get("<unk>"))
        return {role: name_of[index] for role, index in roles.items() if index in name_of}


def mistral(*, instruct: bool = False) -> Definition:
    """The packaged Mistral v0.1 tokenizer; ``instruct`` names ids 1 and 2 ``<|im_start|>`` and ``<|im_end|>``."""
    source = _packaged_source(instruct)
    template = CHATML if instruct else None
    return Definition(source=source, special=_special(json.loads(source)), bos_id=1, eos_ids=(2,), chat_template=template)


def read(folder: Path) -> Definition:
    """The tokenizer of a model folder; the packaged vocabulary where the folder has no tokenizer.json.

    Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json and chat_template.jinja, as far
    as they exist. Raises ZambaError where one is broken or they contradict each other.
    """
    if not folder.is_dir():
        raise ZambaError(f"no folder at {folder}: expected a model folder with tokenizer.json")
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    model = _read_json(folder / "config.json") | _read_json(folder / "generation_config.json")
    names = {role: _token_name(config.get(role), role) for role in ("bos_token", "eos_token")}
    source = _source(folder, model, instruct=IM_START in names.values())
    found = _parse(source, folder / "tokenizer.json")
    content = with_declared(found, config.get("added_tokens_decoder") or {}, {IM_START, IM_END, *names.values()})
    special = _special(content)
    for role, name in names.items():
        if name is not None and name not in special:
            raise ZambaError(f"{folder}: tokenizer_config.json names the {role} {name!r}, but tokenizer.json has no such token")
    return Definition(
        source=source if content == found else compact(content),
        special=special,
        bos_id=_bos_id(special, names["bos_token"], model),
        eos_ids=_eos_ids(special, names["eos_token"], model),
        chat_template=_chat_template(folder, config),
    )


def with_declared(content: dict, declared: dict[str, dict], control: set[str | None]) -> dict:
    """tokenizer.json with what tokenizer_config.json says about added tokens (``added_tokens_decoder``: id to token).

    Where both name an id, the declared name holds, throughout the file. Every token named in ``control`` counts as special.
    """
    added = {token["id"]: dict(token) for token in content.get("added_tokens") or []}
    name_of = {index: name for name, index in _vocabulary(content).items()}
    name_of |= {index: token["content"] for index, token in added.items()}
    id_of = {name: index for index, name in name_of.items()}
    renames = {}
    for index, token in ((int(key), token) for key, token in declared.items()):
        name = token["content"]
        if id_of.get(name, index) != index:
            raise ZambaError(
                f"{name!r} is id {index} in tokenizer_config.json and id {id_of[name]} in tokenizer.json: mend one of them"
            )
        if name_of.get(index, name) != name:
            renames[name_of[index]] = name
        added[index] = {**PLAIN_TOKEN, **token, "id": index}
    for name in control & id_of.keys():
        added.setdefault(id_of[name], {**PLAIN_TOKEN, "content": name, "id": id_of[name]})
    for token in added.values():
        token["special"] = bool(token.get("special")) or token["content"] in control
    return _renamed({**content, "added_tokens": [added[index] for index in sorted(added)]}, renames)


def _renamed(content: dict, renames: dict[str, str]) -> dict:
    """Tokens under other names, in the vocabulary and in the post-processor alike."""
    text = compact(content)
    for old, new in renames.items():
        text = text.replace(json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False))
    return json.loads(text) if renames else content


def compact(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def _vocabulary(content: dict) -> dict[str, int]:
    vocab = content.get("model", {}).get("vocab", {})
    return vocab if isinstance(vocab, dict) else {}


def _special(content: dict) -> dict[str, int]:
    return {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]}


def _packaged_source(instruct: bool) -> str:
    source = PACKAGED.read_text(encoding="utf-8")
    # As whole JSON strings these two stand only for the tokens: vocabulary, added tokens, post-processor.
    return source.replace('"<s>"', f'"{IM_START}"').replace('"</s>"', f'"{IM_END}"') if instruct else source


def _source(folder: Path, model_config: dict, *, instruct: bool) -> str:
    """The text of the folder's tokenizer.json, else of the packaged one where it fits the model."""
    path = folder / "tokenizer.json"
    if path.exists():
        return _read_text(path)
    size = model_config.get("vocab_size", 32000)
    if not isinstance(size, int) or size < 32000:
        raise ZambaError(
            f"{folder} has no tokenizer.json, and its vocab_size {size} is below the 32000 of the packaged Mistral tokenizer: "
            "add the tokenizer.json of the model"
        )
    pieces = folder / "tokenizer.model"
    if pieces.exists() and hashlib.sha256(pieces.read_bytes()).hexdigest() != MISTRAL_SHA256:
        raise ZambaError(f"{pieces} is not Mistral v0.1's, and only that one is built in: add the tokenizer.json of the model")
    return _packaged_source(instruct)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ZambaError(f"cannot read {path}: {error}") from error


def _read_json(path: Path) -> dict:
    return _parse(_read_text(path), path) if path.exists() else {}


def _parse(text: str, path: Path) -> dict:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ZambaError(f"{path} is not valid JSON ({error}): fetch the file again") from error
    if not isinstance(content, dict):
        raise ZambaError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def _token_name(value: object, role: str) -> str | None:
    """Token entries are a string, or an object with the string under ``content``."""
    name = value.get("content") if isinstance(value, dict) else value
    if name is not None and not isinstance(name, str):
        raise ZambaError(f"tokenizer_config.json: {role} is {value!r}, expected a string")
    return name


def _bos_id(special: dict[str, int], name: str | None, generation: dict) -> int | None:
    if name is not None:
        return special[name]
    known = [special[name] for name in BOS_NAMES if name in special]
    return next(iter(known), next(iter(_stated(generation, "bos_token_id")), None))


def _eos_ids(special: dict[str, int], name: str | None, generation: dict) -> tuple[int, ...]:
    """The named token first, then what generation_config.json adds, then ``<|im_end|>``, which always ends a turn."""
    stated = _stated(generation, "eos_token_id")
    named = [special[name]] if name is not None else []
    turn_end = [special[IM_END]] if IM_END in special else []
    usual = [special[name] for name in EOS_NAMES if name in special][:1]
    return tuple(dict.fromkeys([*named, *stated, *turn_end])) or tuple(usual)


def _stated(generation: dict, key: str) -> list[int]:
    """The id or ids that the model's files state. ZambaError for what is none: it would never come, and an answer never end."""
    value = generation.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(index) is not int or index < 0 for index in ids):
        raise ZambaError(f"generation_config.json: {key} is {value!r}, expected a token id or a list of them")
    return ids


def _chat_template(folder: Path, config: dict) -> str | None:
    """chat_template.jinja if there, else the entry in tokenizer_config.json: a string, or a list of named ones with a default."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return _read_text(path)
    entry = config.get("chat_template")
    if isinstance(entry, list):
        entry = {item.get("name"): item.get("template") for item in entry}.get("default")
    if entry is not None and not isinstance(entry, str):
        raise ZambaError(f"{folder / 'tokenizer_config.json'}: chat_template is a {type(entry).__name__}, expected a string")
    return entry
