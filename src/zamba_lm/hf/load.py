"""``from_pretrained`` through our own loader: every style of file, shards, little memory beside the model."""

from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig
from transformers.utils import logging

from zamba_lm.errors import ZambaError
from zamba_lm.hf.config import CONFIGS, from_hf, to_hf
from zamba_lm.hub import resolve
from zamba_lm.model.checkpoint import read_json
from zamba_lm.model.config_read import kind_of
from zamba_lm.model.dtypes import as_dtype
from zamba_lm.model.load import as_device, auto_dtype, read_config
from zamba_lm.model.weights import load_weights
from zamba_lm.model.zamba import Zamba

logger = logging.get_logger(__name__)
HUB = ("cache_dir", "force_download", "local_files_only", "token")
IDLE = """low_cpu_mem_usage _fast_init trust_remote_code use_safetensors weights_only max_memory offload_folder offload_state_dict
offload_buffers _commit_hash _from_auto _from_pipeline code_revision experts_implementation use_kernels
kernel_config tqdm_class proxies disable_mmap allow_all_kernels mirror from_tf from_flax""".split()  # nothing here needs them
REFUSED = {
    "quantization_config": "load first, then quantise (zamba_lm.train.tuning.nf4)",
    "tp_plan": "use zamba_lm.parallel",
    "tp_size": "use zamba_lm.parallel",
    "device_mesh": "use zamba_lm.parallel",
    "distributed_config": "use zamba_lm.parallel",
    "gguf_file": "only safetensors and torch.save files are read here",
    "key_mapping": "every published naming is recognised without one",
    "variant": "one folder holds one set of weights here",
    "fusion_config": "kernels are chosen by zamba_lm.ops.dispatch",
}


class Loading:
    """The classmethod ``from_pretrained`` of our models."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike | None,
        *,
        config: PretrainedConfig | str | PathLike | None = None,
        revision: str | None = None,
        subfolder: str = "",
        device_map: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        attn_implementation: str | None = None,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        generation_config: GenerationConfig | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        adapter_kwargs: dict[str, Any] | None = None,
        adapter_name: str = "default",
        **settings: Any,
    ):
        """A model with its weights, in eval mode, its parameters with gradients.

        ``pretrained_model_name_or_path``: a folder (of which there is one revision), a short name, or owner/name on the hub at a
        ``revision``; with ``None`` the weights are ``state_dict``. ``device_map``: "auto" (the first GPU if there is one), a
        device, or a dict that names one device; None: the CPU, or torch's default device. ``dtype``: "auto" (as stored) or a
        torch dtype. ``attn_implementation``: "sdpa" or "eager", without effect, since attention has one implementation here.
        ``settings``: attributes of the config, such as ``use_mamba_kernels=False`` for the plain definitions of all ops.
        ZambaError for what cannot be had: several devices, quantisation while loading, weights that do not fit.
        """
        hub = {name: settings.pop(name) for name in HUB if name in settings}
        settings = {name: value for name, value in settings.items() if name not in IDLE}
        _refuse(settings)
        wanted = dtype if dtype is not None else torch_dtype if torch_dtype is not None else "auto"
        if state_dict is not None or pretrained_model_name_or_path is None:
            return _from_tensors(cls, config, state_dict, device_map, wanted, settings)
        folder = find(pretrained_model_name_or_path, revision, subfolder, hub)
        hf_config = _config(cls, folder, config, settings)
        zamba, extra = _load(cls, folder, hf_config, one_device(device_map), wanted)
        hf_config.name_or_path = str(pretrained_model_name_or_path)
        hf_config.dtype = zamba.dtype
        if attn_implementation is not None:
            hf_config._attn_implementation = attn_implementation  # said, and of no effect: there is one attention here
        model = cls(hf_config, zamba=zamba)
        missing = model.fill_rest(extra, ignore_mismatched_sizes)
        _finish(model, folder, generation_config)
        if path := (adapter_kwargs or {}).pop("_adapter_model_path", None):
            model.load_adapter(path, adapter_name=adapter_name, adapter_kwargs=adapter_kwargs)
        info = {"missing_keys": missing, "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return (model, info) if output_loading_info else model

    REST: tuple[str, ...] = ()  # tensors of a file beside the model's

    def fill_rest(self, extra: Mapping[str, torch.Tensor], ignore_mismatched_sizes: bool) -> set[str]:
        """Fill what there is beside the model from the file's tensors; returns the names that were not there."""
        return set()


# where


def find(name: str | PathLike, revision: str | None, subfolder: str, hub: Mapping[str, Any]) -> Path:
    """The local folder of a model; options of the hub's client go to it."""
    path, hub = Path(name), {key: value for key, value in hub.items() if value not in (None, False)}
    if not path.is_dir() and not subfolder and not hub:
        return resolve(name if isinstance(name, Path) else str(name), None if revision == "main" else revision)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(str(name), revision=revision, **hub))
    folder = path / subfolder
    return resolve(folder)


def one_device(device_map: Any) -> torch.device:
    """The device that a device_map names. ZambaError when it names several."""
    if isinstance(device_map, Mapping):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ZambaError(f"device_map names {len(devices)} devices; a model lies on one (several: zamba_lm.parallel)")
        device_map = devices.pop()
    if device_map is None:
        if (device := torch.get_default_device()).type == "meta":
            raise ZambaError("weights cannot be loaded onto the meta device: build the model from its config there instead")
        return device
    if isinstance(device_map, int):
        device_map = f"cuda:{device_map}"
    if device_map in ("balanced", "balanced_low_0", "sequential"):
        device_map = "auto"
    return as_device(device_map)


# what


def _config(cls: Any, folder: Path, given: Any, settings: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' config of a folder with settings, or a copy of the one given."""
    if isinstance(given, str | PathLike):
        given = cls.config_class.from_pretrained(given)
    if given is None:
        given = _own(folder)
    if cls.config_class is not None and not isinstance(given, cls.config_class):
        raise ZambaError(f"{folder} holds a {given.model_type} model, and {cls.__name__} is for {cls.config_class.model_type}")
    known = given.to_dict() | {"num_labels": None}
    for name in settings:
        if name not in known and not hasattr(given, name):
            near = get_close_matches(name, known, 1)
            raise ZambaError(f"unknown argument {name!r}" + (f", did you mean {near[0]!r}?" if near else " of from_pretrained"))
    return type(given).from_dict(given.to_dict() | dict(settings)) if settings else type(given).from_dict(given.to_dict())


def _own(folder: Path) -> PretrainedConfig:
    """transformers' config of a folder; config.json of the older kinds is read by us, since transformers cannot."""
    raw = read_json(folder / "config.json")
    if kind_of(raw) == "hf" and raw.get("model_type") in CONFIGS:
        return CONFIGS[raw["model_type"]].from_dict(raw)
    return to_hf(read_config(folder))


def _load(cls: Any, folder: Path, config: PretrainedConfig, device: torch.device, wanted: Any):
    """Our model with its weights, and what else the files hold of ``cls.REST``."""
    ours = from_hf(config)
    dtype = auto_dtype(folder, ours) if wanted == "auto" else as_dtype(wanted)
    try:
        zamba = Zamba(ours, device=device, dtype=dtype)
    except torch.OutOfMemoryError as error:
        need = ours.weight_bytes(dtype) / 2**30
        raise ZambaError(f"{folder} needs {need:.1f} GiB in {dtype}, more than {device} has free") from error
    extra = load_weights(zamba, folder, also=("score.weight",))
    return zamba.requires_grad_(True), {name: tensor for name, tensor in extra.items() if name in cls.REST}


def _from_tensors(cls, config, state_dict, device_map, wanted, settings):
    if not isinstance(config, PretrainedConfig) or state_dict is None:
        raise ZambaError("without a folder, from_pretrained needs config=... and state_dict=...")
    config = type(config).from_dict(config.to_dict() | dict(settings))
    model = cls(config).to(one_device(device_map))
    if wanted != "auto" or state_dict:
        model = model.to(next(iter(state_dict.values())).dtype if wanted == "auto" else as_dtype(wanted))
    if state_dict:
        model.load_state_dict(state_dict)
    return model.eval()


def _finish(model: Any, folder: Path, generation_config: GenerationConfig | None) -> None:
    model.eval()
    if not model.can_generate():
        return
    if generation_config is not None:
        model.generation_config = generation_config
    elif (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def _refuse(settings: dict[str, Any]) -> None:
    for name, instead in REFUSED.items():
        if settings.pop(name, None) is not None:
            raise ZambaError(f"from_pretrained takes no {name} here: {instead}")
