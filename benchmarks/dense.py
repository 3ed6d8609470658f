"""Mistral-7B on transformers, random weights of its published shape: the dense model that Zamba's cards compare with.

    python benchmarks/dense.py --context 512,16384 --json results/decode-mistral-7b.json

Decoding is measured as `zamba-lm bench decode` measures transformers, and written in the same format. The shape is that of
version 0.3, which has no sliding window, so that every token sees its whole context.
"""

import argparse
import datetime
import json
import shlex
import sys
from pathlib import Path

import torch

from zamba_lm.eval.bench.clock import Peak, forget_peak, measure
from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.decoder import prepare
from zamba_lm.eval.bench.job import device_facts, versions, whole_numbers
from zamba_lm.eval.bench.peer import TheirDecoder, describe
from zamba_lm.eval.bench.report import SIDES, Report, Row
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.eval.bench.table import show
from zamba_lm.model.load import as_device

SHAPE = {
    "vocab_size": 32768,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rope_theta": 1e6,
    "max_position_embeddings": 1 << 20,
    "sliding_window": None,
}


def shape(layers: int | None = None):
    """transformers' config of the model, or of its first layers."""
    from transformers import MistralConfig  # when it is needed: others use this file's names only

    return MistralConfig(**SHAPE | {"num_hidden_layers": layers or SHAPE["num_hidden_layers"]})


def build(config, device: torch.device):
    """The model in bfloat16, its weights drawn on the device."""
    from transformers import MistralForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = MistralForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def cost(config, parameters: int, batch: int, context: int) -> Cost:
    """Bytes and operations of one step: every weight but the embedding, keys and values."""
    head_dim = config.hidden_size // config.num_attention_heads
    weights = parameters - config.vocab_size * config.hidden_size
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 2
    attention = 4 * config.num_hidden_layers * config.hidden_size * (context + 1)
    return Cost(2 * weights + batch * context * kv, batch * (2 * weights + attention))


class Dense:
    """The model on a device, and rows of its decoding."""

    def __init__(self, device: torch.device, roof: Roof, repeats: int, layers: int | None = None):
        self.device, self.roof, self.repeats, self.layers = device, roof, repeats, layers
        self.config = shape(layers)
        self.model = build(self.config, device)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def blank(self, **options) -> Report:
        """A report without rows."""
        model = {
            "name": "mistral-7b" + (f" (first {self.layers} layers)" if self.layers else ""),
            "preset": "mistral-7b",
            "random": True,
            "layers": self.config.num_hidden_layers,
            "dtype": "bfloat16",
            "parameters": self.parameters,
            "weight_bytes": 2 * self.parameters,
        }
        return Report(
            kind="decode",
            command=shlex.join(["python", "benchmarks/dense.py", *sys.argv[1:]]),
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions=versions(),
            device=device_facts(self.device),
            roof=self.roof,
            model=model,
            options=options,
            peer=describe(),
        )

    def row(self, batch: int, context: int) -> Row:
        """A step of decoding ``batch`` sequences that hold ``context`` tokens."""
        least = cost(self.config, self.parameters, batch, context)
        what = {"side": SIDES[1], "batch": batch, "context": context, "tokens": batch, "cost": least}
        limit = least.limit(self.roof.copy_rate, self.roof.matrix_rate)
        try:
            with Peak(self.device) as peak:
                decoder = TheirDecoder(self.model, batch)
                note = prepare(decoder, batch, context, self.config.vocab_size, 0)
                forget_peak(self.device)
                seconds = measure(decoder.step, self.device, self.repeats)
        except torch.OutOfMemoryError:
            return Row(seconds=None, limit=limit, note="out of memory", **what)
        return Row(seconds=seconds, limit=limit, peak_bytes=peak.bytes, note=note, **what)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", default="512")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = as_device(args.device)
    dense = Dense(device, Roof.of(device, torch.bfloat16), args.repeats, args.layers)
    report = dense.blank(**{name: str(value) for name, value in vars(args).items()})
    for batch in whole_numbers("--batch", args.batch):
        for context in whole_numbers("--context", args.context):
            report.rows.append(dense.row(batch, context))
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report.plain(), indent=1) + "\n")


if __name__ == "__main__":
    main()
