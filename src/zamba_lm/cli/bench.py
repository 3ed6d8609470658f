"""``zamba-lm bench``: how fast a model runs here, beside what this device allows and beside others."""

from pathlib import Path
from typing import Annotated

import typer

from zamba_lm.cli import options as o
from zamba_lm.cli import terminal
from zamba_lm.errors import ZambaError

app = typer.Typer(
    help="Measure speed and memory, beside what this very device can copy and multiply, and beside others.",
    epilog="zamba-lm bench COMMAND --help shows examples. docs/benchmarks.md says how things are measured.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Preset = Annotated[str | None, typer.Option(metavar="NAME", help="Shape of a published model, such as zamba2-2.7b.")]
Random = Annotated[bool, typer.Option("--random", help="Random weights for --preset, drawn on the device: no download.")]
Model = Annotated[str | None, typer.Option(metavar="NAME", help="Folder or name of a checkpoint, instead of --preset.")]
Layers = Annotated[int | None, typer.Option(metavar="N", help="Only the first N layers: a quick look.")]
Batch = Annotated[str, typer.Option(metavar="LIST", help="Sequences at a time, such as 1,32.")]
Against = Annotated[str | None, typer.Option(metavar="PEER", help="transformers: the same weights in the same process.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="bf16, fp16 or fp32.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the random weights and the prompts.")]
Repeats = Annotated[int, typer.Option(metavar="N", help="Rounds of which the median is shown.")]
StateDtype = Annotated[str, typer.Option(metavar="DTYPE", help="Of SSM states: fp32, or bf16 for half the memory.")]
Merge = Annotated[bool, typer.Option(help="On a GPU, adapters merged into per-call copies (speed) or shared (memory).")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write everything as JSON.")]


def _context(gpu: int, cpu: int, what: str):
    return Annotated[str, typer.Option(metavar="LIST", help=f"{what}, such as 512,16384; {gpu} on a GPU, {cpu} on a CPU.")]


@app.command()
def decode(
    preset: Preset = None, random: Random = False, model: Model = None, layers: Layers = None,
    batch: Batch = "1", context: _context(512, 64, "Tokens there already") = "", against: Against = None, dtype: Dtype = "bf16",
    state_dtype: StateDtype = "fp32", merge: Merge = True, device: o.Device = "auto", backend: o.Backend = "auto", seed: Seed = 0,
    repeats: Repeats = 5, json: Json = None,
) -> None:  # fmt: skip
    """Time of one decoding step: one new token for every sequence.

    \b
    Examples:
      zamba-lm bench decode
      zamba-lm bench decode --preset zamba2-2.7b --random --batch 1,32 --context 512,16384
      zamba-lm bench decode --preset zamba2-2.7b --random --against transformers --json decode.json
    """
    _run(
        json, kind="decode", preset=preset, random=random, model=model, layers=layers, batch=batch, context=context,
        against=against, dtype=dtype, state_dtype=state_dtype, merge=merge, device=device, backend=backend, seed=seed,
        repeats=repeats,
    )  # fmt: skip


@app.command()
def prefill(
    preset: Preset = None, random: Random = False, model: Model = None, layers: Layers = None,
    batch: Batch = "1", context: _context(2048, 128, "Tokens of the prompt") = "", against: Against = None, dtype: Dtype = "bf16",
    state_dtype: StateDtype = "fp32", merge: Merge = True, device: o.Device = "auto", backend: o.Backend = "auto", seed: Seed = 0,
    repeats: Repeats = 5, json: Json = None,
) -> None:  # fmt: skip
    """Time from a prompt to its first new token.

    \b
    Examples:
      zamba-lm bench prefill --context 128,512
      zamba-lm bench prefill --preset zamba2-2.7b --random --context 2048,16384 --against transformers
    """
    _run(
        json, kind="prefill", preset=preset, random=random, model=model, layers=layers, batch=batch, context=context,
        against=against, dtype=dtype, state_dtype=state_dtype, merge=merge, device=device, backend=backend, seed=seed,
        repeats=repeats,
    )  # fmt: skip


@app.command("train-step")
def train_step(
    preset: Preset = None, random: Random = False, model: Model = None, layers: Layers = None,
    batch: Batch = "1", context: _context(4096, 128, "Tokens of a row") = "",
    recompute: Annotated[bool, typer.Option("--recompute", help="Layers keep only their inputs and run twice.")] = False,
    against: Against = None, dtype: Dtype = "bf16", device: o.Device = "auto", backend: o.Backend = "auto", seed: Seed = 0,
    repeats: Repeats = 5, json: Json = None,
) -> None:  # fmt: skip
    """Time of a forward and a backward pass, without an optimizer.

    \b
    Examples:
      zamba-lm bench train-step --context 128
      zamba-lm bench train-step --preset zamba-7b-v1 --random --recompute --against transformers
    """
    _run(
        json, kind="train-step", preset=preset, random=random, model=model, layers=layers, batch=batch, context=context,
        recompute=recompute, against=against, dtype=dtype, device=device, backend=backend, seed=seed, repeats=repeats,
    )  # fmt: skip


@app.command()
def kernels(
    preset: Preset = None, random: Random = False, model: Model = None,
    op: Annotated[str, typer.Option(metavar="LIST", help="Only these ops, such as ssd,conv.")] = "",
    batch: Batch = "1", context: _context(4096, 64, "Tokens of a sequence, and of the past in decoding") = "",
    dtype: Dtype = "bf16", device: o.Device = "auto", seed: Seed = 0, repeats: Repeats = 5, json: Json = None,
) -> None:  # fmt: skip
    """Time of every operation by every implementation, at the shapes of a model, beside other packages where installed.

    \b
    Examples:
      zamba-lm bench kernels
      zamba-lm bench kernels --preset zamba2-2.7b --random --batch 1,32 --context 4096 --op linear,ssd
    """
    _run(
        json, kind="kernels", preset=preset, random=random, model=model, op=op, batch=batch, context=context, dtype=dtype,
        device=device, seed=seed, repeats=repeats,
    )  # fmt: skip


@app.command()
def start(
    preset: Preset = None, random: Random = False, model: Model = None, layers: Layers = None,
    context: _context(128, 128, "Tokens of the prompt") = "", against: Against = None, dtype: Dtype = "bf16",
    device: o.Device = "auto", seed: Seed = 0, json: Json = None,
) -> None:  # fmt: skip
    """Time from weights in memory to the first token, in a new process: nothing compiled yet, then compiled before.

    \b
    Examples:
      zamba-lm bench start
      zamba-lm bench start --preset zamba2-2.7b --random --against transformers
    """
    _run(
        json, kind="start", preset=preset, random=random, model=model, layers=layers, context=context, against=against,
        dtype=dtype, device=device, seed=seed,
    )  # fmt: skip


def _run(json: Path | None, **options) -> None:
    """Measure, show, and write what was found."""
    if json is not None and not json.absolute().parent.is_dir():
        raise ZambaError(f"--json {json}: there is no folder {json.absolute().parent} to write it to")
    if json and json.is_dir():
        raise ZambaError(f"--json {json}: this is a folder, give a file in it")
    with terminal.busy("measuring ..."):
        from zamba_lm.eval.bench.job import Options, run
        from zamba_lm.eval.bench.table import show

        report = run(Options(**options))
    show(report)
    if json is not None:
        from json import dumps

        json.write_text(dumps(report.plain(), indent=1) + "\n")
