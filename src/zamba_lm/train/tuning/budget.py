"""The memory of training adapters: the frozen model, what is trained beside it, activations."""

from dataclasses import dataclass

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.train.recipes.budget import device_bytes, processes, rows_of_device
from zamba_lm.train.scale.mesh import pieces_of
from zamba_lm.train.trainer import plan
from zamba_lm.train.trainer.plan import SPARE, gib
from zamba_lm.train.tuning.lora import Lora

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a number: four bits, a byte of scale a block, a scale of scales
TRAINED = 4 + 4 + 8 + 2  # bytes a number that is trained: weight, gradient, two moments, the copy that is multiplied


@dataclass(frozen=True)
class Kind:
    """What is frozen and what is trained."""

    lora: Lora
    nf4: bool


def fixed(c: ZambaConfig, kind: Kind, *, bf16: bool, pieces: int = 1, keep: str = "blocks") -> int:
    """Bytes of the frozen weights, over ``pieces`` devices, and of everything about the adapters."""
    frozen, trained = numbers(c, kind.lora)
    rest, item = c.n_params() - frozen, 2 if bf16 else 4
    weights = (NF4 if kind.nf4 else item) * frozen + item * rest
    gathered = plan.gathered_params(c, keep)[0] if pieces > 1 else 0
    return int(weights / pieces + item * gathered + TRAINED * trained)


def numbers(c: ZambaConfig, lora: Lora) -> tuple[int, int]:
    """Numbers in projections outside the model's own adapters, and in the factors of ``lora``."""
    from torch import nn

    from zamba_lm.model.zamba import Zamba
    from zamba_lm.train.tuning.targets import matched

    zamba = Zamba(c, device="meta")
    modules = {name: m for name, m in zamba.named_modules() if isinstance(m, nn.Linear)}
    trained = sum(lora.rank * (modules[n].in_features + modules[n].out_features) for n in matched(zamba, lora.targets))
    return sum(m.weight.numel() for name, m in modules.items() if "adapters" not in name), trained


def at_once(config, c: ZambaConfig, kind: Kind, *, row: int, rows: int, unit: str) -> int:
    """Rows of ``row`` tokens that one device takes at once, of its share of ``rows``. ZambaError with what would fit."""
    most, limit = rows_of_device(config, rows), device_bytes(config)
    if config.batch.micro and most % config.batch.micro:
        raise ZambaError(f"batch.micro is {config.batch.micro}, but a device's {most} {unit} of a step do not divide by it")
    every = {micro: total(config, c, kind, row=row, micro=micro) for micro in range(1, most + 1) if most % micro == 0}
    wanted = {config.batch.micro: every[config.batch.micro]} if config.batch.micro else every
    good = [micro for micro, size in wanted.items() if size <= SPARE * limit]
    if good:
        return max(good)
    least = min(wanted)
    said = f"{least} of {row} tokens with recompute={config.batch.recompute} need about {gib(wanted[least])} of {gib(limit)}"
    raise ZambaError(f"{said}; {_advice(config, every, limit)}")


def total(config, c: ZambaConfig, kind: Kind, *, row: int, micro: int) -> int:
    item = 2 if config.run.bf16 else 4
    return _fixed(config, c, kind) + plan.activations(c, row * micro, config.batch.recompute, item)


def _fixed(config, c: ZambaConfig, kind: Kind) -> int:
    pieces = pieces_of(config.scale, processes())
    return fixed(c, kind, bf16=config.run.bf16, pieces=pieces, keep=config.scale.keep)


def _advice(config, every: dict[int, int], limit: int) -> str:
    good = [micro for micro, size in every.items() if size <= SPARE * limit]
    if good:
        return f"what fits: --set batch.micro={max(good)} ({gib(every[max(good)])})"
    if config.batch.recompute != "layers":
        return "try --set batch.recompute=layers"
    return "nothing fits: take shorter rows, qlora-sft (four bits), or a larger device"


def told(config, c: ZambaConfig, kind: Kind, *, row: int, rows: int, unit: str) -> str:
    """The plan for people."""
    micro = at_once(config, c, kind, row=row, rows=rows, unit=unit)
    weights = "four bits" if kind.nf4 else "bfloat16" if config.run.bf16 else "float32"
    trained = numbers(c, kind.lora)[1]
    parts = [
        (gib(device_bytes(config)), "memory of one device"),
        (gib(_fixed(config, c, kind)), f"weights in {weights}, and {trained / 1e6:.1f} M numbers of adapters"),
        (gib(total(config, c, kind, row=row, micro=micro)), f"with activations of {micro} {unit} of {row} tokens (estimate)"),
    ]
    return "\n".join(f"{size:>12}  {text}" for size, text in parts)
