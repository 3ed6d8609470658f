"""Options that several commands share, and what their values mean."""

import json
from typing import Annotated

import typer

from zamba_lm.errors import ZambaError

Model = Annotated[str, typer.Option(metavar="NAME", help="Folder, Hugging Face name, or the embedded zamba2-pebble.")]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit on the hub, such as iter2500.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:1.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="auto (the checkpoint's), bf16, fp16 or fp32.")]
Backend = Annotated[
    str, typer.Option(metavar="NAME", help="auto (fastest that runs here), triton (or fail), reference (plain torch).")
]
Override = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Change a field of the config, such as dt_limit=[0.001,1e9]; repeatable."),
]
MaxTokens = Annotated[int | None, typer.Option(metavar="N", help="New tokens at most.")]
Temperature = Annotated[float | None, typer.Option(metavar="T", help="0 takes the most likely token, always; more is livelier.")]
TopK = Annotated[int | None, typer.Option(metavar="K", help="Only the K most likely tokens; 0 is off.")]
TopP = Annotated[
    float | None, typer.Option(metavar="P", help="Only the likeliest tokens that together hold probability P; 1 is off.")
]
MinP = Annotated[
    float | None, typer.Option(metavar="P", help="Only tokens at least P times as likely as the likeliest; 0 is off.")
]
RepetitionPenalty = Annotated[float | None, typer.Option(metavar="X", help="Above 1, tokens seen before become less likely.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")]


def overrides(pairs: list[str] | None) -> dict | None:
    """``["a=1", "b=x"]`` as ``{"a": 1, "b": "x"}``: values are JSON where they can be, else text."""
    return dict(map(_pair, pairs)) if pairs else None


def _pair(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ZambaError(f"--override {text!r}: expected KEY=VALUE, such as max_positions=8192")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
