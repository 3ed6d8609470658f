"""``zamba-lm info``: what a model is, what it costs, and which implementation each operation would use here."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from zamba_lm.cli import options as o
from zamba_lm.cli import terminal
from zamba_lm.errors import ZambaError


def info(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The same as --model.")] = None,
    model: o.Model = "zamba2-pebble",
    revision: o.Revision = None,
    device: o.Device = "auto",
    override: o.Override = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Show what a model is: shapes, parameters, memory, and which implementation each operation uses here.

    Published models need no download: their shapes are built in.

    \b
    Examples:
      zamba-lm info
      zamba-lm info zamba2-2.7b
      zamba-lm info --model path/to/checkpoint --json
    """
    with terminal.busy("looking ..."):
        facts = _facts(name or model, revision, device, o.overrides(override))
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _facts(name: str, revision: str | None, device: str, overrides: dict | None) -> dict:
    from zamba_lm.model.load import as_device, override
    from zamba_lm.ops import dispatch

    where = as_device(device)
    found, config = _config(name, revision)
    config = override(config, overrides or {})
    return {
        "model": name,
        "found": found,
        "config": _plain(config),
        "parameters": config.n_params(),
        "weights_read_per_token": config.weights_read_per_token(),
        "weight_bytes": config.weight_bytes(),
        "weight_bytes_read_per_token": config.weights_read_per_token() * config.weight_bytes() // config.n_params(),
        "kv_bytes_per_token": config.kv_bytes_per_token(),
        "ssm_state_bytes": config.state_bytes(),
        "conv_state_bytes": config.conv_state_bytes(),
        "device": str(where),
        "ops": [dict(zip(("op", "implementation", "why"), row)) for row in dispatch.table(where)],
    }


def _config(name: str, revision: str | None):
    """Where the config was found, and the config: a folder first, then the built-in shapes, then the hub."""
    from zamba_lm.hub import resolve
    from zamba_lm.model.load import read_config
    from zamba_lm.model.presets import PRESETS

    published = name.removeprefix("Zyphra/").lower()
    if published in PRESETS and not (Path(name) / "config.json").is_file():
        if revision:
            raise ZambaError(f"{name} is built in, every revision of it has this shape: leave --revision {revision} out")
        return "built in", PRESETS[published]
    folder = resolve(name, revision)
    return str(folder), read_config(folder)


def _plain(config) -> dict:
    """The fields of a config that JSON can hold: an infinite limit is null."""
    infinite = float("inf")
    return {
        key: [None if x == infinite else x for x in value] if isinstance(value, tuple) else value
        for key, value in vars(config).items()
    }


def _print(facts: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else 200  # a file or a pipe gets long lines, not broken ones
    console = Console(highlight=False, markup=False, width=width)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, value in _rows(facts):
        table.add_row(label, value)
    console.print(f"{facts['model']} ({facts['found']})\n", soft_wrap=True)
    console.print(table)
    ops = Table(box=None, padding=(0, 2, 0, 0), title=f"\noperations on {facts['device']}", title_justify="left", title_style="")
    for column in ("op", "implementation", "why"):
        ops.add_column(column)
    for row in facts["ops"]:
        ops.add_row(*row.values())
    console.print(ops)


def _rows(facts: dict) -> list[tuple[str, str]]:
    """Labels and values, in reading order."""
    c = facts["config"]
    size, heads = 2 * c["d_model"] // c["n_heads"], c["n_ssm_heads"]
    mixer = "Mamba-2" if c["family"] == "zamba2" else "Mamba-1"
    groups = f", {c['n_groups']} groups" if c["n_groups"] > 1 else ""
    return [
        ("family", f"{c['family']} ({mixer} mixers)"),
        ("layers", f"{c['n_layers']}, width {c['d_model']}"),
        ("shared blocks", _blocks(c)),
        (
            "mixer",
            f"{heads} heads of {c['expand'] * c['d_model'] // heads}, state {c['d_state']}{groups}, convolution {c['d_conv']}",
        ),
        ("attention", f"{c['n_heads']} heads of {size}, {_rope(c)}"),
        ("MLP", f"{c['d_ff']}, gated GELU"),
        ("adapters", _adapters(c)),
        ("vocabulary", f"{c['vocab_size']:,}, tied"),
        ("context", f"{c['max_positions']:,} tokens in training"),
        (
            "parameters",
            f"{facts['parameters']:,} ({facts['parameters'] / 1e9:.4f} B), {_bytes(facts['weight_bytes'])} in {c['dtype']}",
        ),
        ("read per token", f"{facts['weights_read_per_token']:,} weights, {_bytes(facts['weight_bytes_read_per_token'])}"),
        ("keys and values", f"{_bytes(facts['kv_bytes_per_token'])} a token"),
        (
            "state",
            f"{_bytes(facts['ssm_state_bytes'])} SSM (float32) and {_bytes(facts['conv_state_bytes'])} convolution, a sequence",
        ),
    ]


def _blocks(c: dict) -> str:
    calls = c["hybrid_layers"]
    return f"{c['n_blocks']}, called in {len(calls)} layers: {', '.join(map(str, calls))}" if calls else "none"


def _rope(c: dict) -> str:
    if not c["rope_theta"]:
        return "no RoPE"
    return f"RoPE theta {c['rope_theta']:g}" + (", rescaled for long contexts" if c["long_context"] else "")


def _adapters(c: dict) -> str:
    if not c["adapter_rank"]:
        return "none"
    return f"rank {c['adapter_rank']}, a call each, on the MLP" + (" and on q, k, v" if c["attention_adapters"] else "")


def _bytes(n: int) -> str:
    """Bytes in the largest binary unit that leaves at least one: "5.0 GiB"."""
    power = min((max(n, 1).bit_length() - 1) // 10, 4)
    return f"{n / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}" if power else f"{n} B"
