"""``save_pretrained`` in the format that transformers and every server reads: complete, or nothing at all."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import PushToHubMixin

from zamba_lm.errors import ZambaError
from zamba_lm.hf.config import from_hf
from zamba_lm.model.names import pieces
from zamba_lm.model.styles import style_of
from zamba_lm.model.weights import Parameter, write_checkpoint

PREFIX = "zamba."
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Saving:
    """``save_pretrained`` and ``load_state_dict`` of our models."""

    zamba: Any
    config: Any

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        token: str | bool | None = None,
        save_peft_format: bool = True,
        variant: str | None = None,
        **hub: Any,
    ) -> None:
        """Write config.json, generation_config.json and safetensors to a folder. A model with PEFT adapters writes those alone.

        ``state_dict``: the tensors to write in place of the model's own, under their names in ``state_dict()``.
        ``max_shard_size``: bytes, or text like "5GB". ``hub``: what transformers takes with ``push_to_hub`` (repo_id, private,
        commit_message, create_pr). ZambaError when something stands in a projection's place that no checkpoint can say, and
        for a folder that cannot be written.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            return super().save_pretrained(  # type: ignore[misc]
                save_directory, is_main_process, state_dict, push_to_hub, save_peft_format=save_peft_format, token=token, **hub
            )
        if variant is not None:
            raise ZambaError(f"variant={variant!r}: a folder holds one set of weights here, under the usual name")
        if is_main_process:
            self._write(Path(save_directory), state_dict, _bytes(max_shard_size))
        if push_to_hub and is_main_process:
            self._upload(Path(save_directory), token, hub)

    def _write(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None, most: int) -> None:
        config = self.config
        config.dtype = str(self.zamba.dtype).removeprefix("torch.")
        config.architectures = [type(self).__name__]
        parameters, extra = self._tensors(state_dict)
        write_checkpoint(
            folder,
            from_hf(config),
            parameters,
            style="hf",
            max_shard_bytes=most,
            config_text=config.to_json_string(use_diff=True),
            extra=extra,
        )
        if self.can_generate():  # type: ignore[attr-defined]
            self.generation_config.save_pretrained(folder)  # type: ignore[attr-defined]

    def _tensors(self, state_dict) -> tuple[dict[str, Parameter], dict[str, torch.Tensor]]:
        """Our parameters by name, and the tensors beside them that the file holds too."""
        tensors = dict(self.state_dict() if state_dict is None else state_dict)  # type: ignore[attr-defined]
        head, embedding = tensors.get("lm_head.weight"), tensors.get(PREFIX + "embedding.weight")
        if head is not None and embedding is not None and head.data_ptr() != embedding.data_ptr() and not _same(head, embedding):
            raise ZambaError("the head is no longer the embedding, and no config.json of Zamba can say so: tie_weights() first")
        mine = {name.removeprefix(PREFIX): one for name, one in tensors.items() if name.startswith(PREFIX)}
        needed = {piece.target for piece in pieces(self.zamba.config, "hf")}
        if missing := sorted(needed - set(mine)):
            raise ZambaError(
                f"cannot save: there is no {missing[0]}, nor {len(missing) - 1} more; if adapters or quantised layers stand in "
                "their place, merge them first (PEFT: merge_and_unload)"
            )
        parameters = {name: Parameter(mine[name].dtype, partial(_whole, mine[name])) for name in needed}
        return parameters, {name: tensors[name].detach() for name in self.REST if name in tensors}  # type: ignore[attr-defined]

    def _upload(self, folder: Path, token, hub: dict[str, Any]) -> None:
        from huggingface_hub import HfApi

        message, create_pr = hub.pop("commit_message", None), hub.pop("create_pr", False)
        api, repo_id = HfApi(token=token), hub.pop("repo_id", folder.name)
        repo_id = api.create_repo(repo_id, exist_ok=True, **hub).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message or "Upload model", create_pr=create_pr)

    def push_to_hub(self, *args: Any, **kwargs: Any):
        """As transformers' method of that name: saves to a temporary folder and uploads it."""
        return PushToHubMixin.push_to_hub(self, *args, **kwargs)  # type: ignore[arg-type]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As torch's, and for the names of a checkpoint too, which fill the parameters in place."""
        if not any(name.startswith(PREFIX) for name in state_dict) and style_of(state_dict) == "hf":
            state_dict = self._renamed(state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)  # type: ignore[misc]

    def _renamed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of a checkpoint under our names. ZambaError for one that is missing."""
        ours = self.state_dict()  # type: ignore[attr-defined]
        found: dict[str, torch.Tensor] = {name: one for name, one in tensors.items() if name in self.REST}  # type: ignore
        for piece in pieces(self.zamba.config, "hf"):
            name = next((one for one in piece.names if one in tensors), None)
            if name is None:
                raise ZambaError(f"the state dict has no {piece.names[0]}")
            target = PREFIX + piece.target
            found.setdefault(target, torch.empty_like(ours[target], dtype=tensors[name].dtype))
            window = piece.window(found[target])
            window.copy_(tensors[name].reshape(window.shape))
        if "lm_head.weight" in ours:
            found["lm_head.weight"] = found[PREFIX + "embedding.weight"]
        return found


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, gathered if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def _bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    number = size.strip().upper().rstrip("KMGTIB")
    unit = size.strip().upper()[len(number) :]
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError) as error:
        raise ZambaError(f"max_shard_size is {size!r}, expected a number of bytes or text like '5GB'") from error
