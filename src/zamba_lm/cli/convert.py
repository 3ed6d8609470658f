"""``zamba-lm convert``: a checkpoint in another style or dtype."""

from enum import StrEnum
from typing import Annotated

import typer

from zamba_lm.cli import options as o
from zamba_lm.cli import terminal


class Style(StrEnum):
    hf = "hf"
    fork = "fork"
    native = "native"


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder, Hugging Face name, or zamba2-pebble.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Folder to write.")],
    style: Annotated[Style, typer.Option(help="Weight names: transformers', the older fork's or the native ones.")] = Style.hf,
    revision: o.Revision = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="same, bf16, fp16, fp32, or int8 (rows with scales).")] = "same",
) -> None:
    """Write a checkpoint in another style or dtype.

    Reads every style, with tied weights stored once or repeated. The tokenizer comes along.

    \b
    Examples:
      zamba-lm convert zamba2-pebble pebble-bf16 --dtype bf16
      zamba-lm convert path/to/native-checkpoint zamba2-hf --style hf
    """
    with terminal.busy(f"converting {source} ..."):
        from zamba_lm.model.convert import convert as run

        run(source, target, style=style.value, dtype=dtype, revision=revision)
    terminal.say(f"wrote {target}")
