"""The tokenizer behind AutoTokenizer: transformers' own class, around exactly what the files of the model say.

The published folders name LlamaTokenizer as their class. transformers 5 builds that class's pipeline anew, beside the one in
tokenizer.json, and then " leading" or a line behind a control token get other ids than the models were trained with.
"""

from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from zamba_lm.hub import EMBEDDED, REPOSITORIES, resolve
from zamba_lm.text import definition

FILES = ["*.json", "*.jinja", "tokenizer.model"]
HUB = ("cache_dir", "force_download", "local_files_only", "token")
IDLE = ("use_fast", "trust_remote_code", "tokenizer_type", "legacy", "from_slow", "proxies", "gguf_file", "fix_mistral_regex")


class ZambaTokenizer:
    """What AutoTokenizer finds for both families; makes a PreTrainedTokenizerFast."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike,
        *_: Any,
        revision: str | None = None,
        subfolder: str = "",
        **settings: Any,
    ) -> PreTrainedTokenizerFast:
        """The tokenizer of a model folder or hub name; the packaged Mistral v0.1 one where the model brings no tokenizer.json.

        ``settings``: arguments of transformers' tokenizers, such as ``padding_side="left"``. ZambaError for files that are
        broken or contradict each other.
        """
        hub = {name: settings.pop(name) for name in HUB if name in settings}
        settings = {name: value for name, value in settings.items() if name not in IDLE and not name.startswith("_")}
        parts = definition.read(_folder(pretrained_model_name_or_path, revision, hub) / (subfolder or ""))
        given = parts.names() | {"chat_template": parts.chat_template, "clean_up_tokenization_spaces": False} | settings
        given["name_or_path"] = str(pretrained_model_name_or_path)
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(parts.source), **given)


def _folder(name: str | PathLike, revision: str | None, hub: dict[str, Any]) -> Path:
    """The folder with the tokenizer's files; of a model on the hub, these alone are fetched."""
    if Path(name).is_dir():
        return Path(name)
    if str(name) == EMBEDDED:
        return resolve(EMBEDDED)
    from huggingface_hub import snapshot_download

    repository = REPOSITORIES.get(str(name).lower(), str(name))
    return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES, **hub))


def register_tokenizer(configs: dict[str, type]) -> None:
    """Have AutoTokenizer take this class for model types, whatever class their files name."""
    from transformers import AutoTokenizer
    from transformers.models.auto import tokenization_auto as tables

    for model_type, config in configs.items():
        tables.TOKENIZER_MAPPING_NAMES[model_type] = ZambaTokenizer.__name__
        tables.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.add(model_type)
        AutoTokenizer.register(config, ZambaTokenizer, exist_ok=True)
