"""A recipe's memory on the devices there are: how many rows at once, and the plan as text."""

import os
from typing import Any

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.train.recipes.base import Language
from zamba_lm.train.scale.mesh import check, pieces_of, readers
from zamba_lm.train.trainer import plan
from zamba_lm.train.trainer.plan import gib


def rows_at_once(config: Language, shape: ZambaConfig, *, row: int, rows: int) -> int:
    """Rows of ``row`` tokens that one device takes at once. ZambaError with what would fit when the choice does not."""
    return plan.choose(
        shape,
        row=row,
        most=rows_of_device(config, rows),
        micro=config.batch.micro,
        recompute=config.batch.recompute,
        device_bytes=device_bytes(config),
        **how(config),
    )


def how(config: Language) -> dict[str, Any]:
    """What the memory depends on beside rows and recomputation."""
    check(scale := config.scale)
    spread = {"pieces": pieces_of(scale, processes()), "keep": scale.keep, "tensor": scale.tensor}
    return {"optimizer": config.optim.name, "bf16": config.run.bf16} | spread


def processes() -> int:
    """As torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rows_of_device(config: Language, rows: int) -> int:
    """A device's share of a step's rows, which those that split layers between them have together."""
    check(config.scale)
    count = readers(config.scale, processes())
    if rows % count:
        who = f"{count} processes" if count == processes() else f"{count} groups of {config.scale.tensor} processes"
        raise ZambaError(f"batch.rows is {rows}, which {who} cannot share evenly")
    return rows // count


def device_bytes(config: Language) -> int:
    """Memory of the device that a run will use: what the recipe says, or what is there."""
    if config.run.memory_gib:
        return int(config.run.memory_gib * 2**30)
    if config.run.device != "cpu":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def told(config: Language, shape: ZambaConfig, *, row: int, rows: int) -> str:
    """The plan for people: what is taken by what, and what else would fit."""
    limit, most = device_bytes(config), rows_of_device(config, rows)
    every = plan.fits(shape, row=row, most=most, device_bytes=limit, **how(config))
    lines = [f"memory of one device: {gib(limit)}; a step is {rows} rows of {row} tokens"]
    lines += _parts(config, shape, row, rows)
    lines += ["", "rows at once  " + "".join(f"{kind:>10}" for kind in plan.RECOMPUTE) + "   (recompute; * fits)"]
    for micro in sorted({one.micro for one in every}):
        cells = {one.recompute: f"{gib(one.total)}{'*' if one.fits else ' '}" for one in every if one.micro == micro}
        lines.append(f"{micro:>12}  " + "".join(f"{cells[kind]:>10}" for kind in plan.RECOMPUTE))
    return "\n".join(lines)


def _parts(config: Language, shape: ZambaConfig, row: int, rows: int) -> list[str]:
    """The chosen plan, part by part, or why there is none."""
    try:
        micro = rows_at_once(config, shape, row=row, rows=rows)
    except ZambaError as error:
        return [f"does not fit: {error}"]
    found = plan.memory(shape, row=row, micro=micro, recompute=config.batch.recompute, **how(config))
    pieces = how(config)["pieces"]
    spread = "" if pieces == 1 else f", in {pieces} pieces"
    names = {
        "weights": f"weights, float32{spread}",
        "products": "their bfloat16 copies" if pieces == 1 else "what is gathered at once",
        "gradients": "gradients, float32",
        "moments": f"moments of {config.optim.name}",
        "activations": f"activations of {micro} row{'s' * (micro > 1)} at once, recompute={config.batch.recompute} (estimate)",
    }
    return [f"{gib(getattr(found, key)):>12}  {text}" for key, text in names.items()] + [f"{gib(found.total):>12}  together"]
