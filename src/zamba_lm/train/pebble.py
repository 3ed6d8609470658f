"""How the embedded model zamba2-pebble is made: its shape, its data, its run.

python -m zamba_lm.train.corpus DATA TOKENS
python -m zamba_lm.train.pebble TOKENS OUT [--tokens 700e6]
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.load import load_model, override
from zamba_lm.model.weights import save_weights
from zamba_lm.model.zamba import Zamba
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.bits import bits_per_byte
from zamba_lm.train.corpus import read_held_out
from zamba_lm.train.loop import Plan, Stage, show, train
from zamba_lm.train.stream import Mixture

PEBBLE = ZambaConfig(
    family="zamba2", vocab_size=32000, d_model=384, n_layers=11, hybrid_layers=(1, 3, 5, 7, 9), n_blocks=2,
    n_ssm_heads=12, d_state=64, n_heads=12, d_ff=960, adapter_rank=16, rope_theta=10000.0, max_positions=2048,
)  # fmt: skip

PLAN = Plan(
    stages=(
        Stage("pretrain", 0.55, {"pretrain": 0.76, "anneal": 0.24}),
        Stage("anneal", 0.39, {"pretrain": 0.61, "anneal": 0.34, "chat": 0.05}),
        Stage("chat", 0.06, {"pretrain": 0.30, "anneal": 0.20, "chat": 0.50}),
    ),
    tokens=700_000_000,
    matrix_lr=4e-3,
    patterns={"pretrain": "pretrain-0*.npy|pretrain-1[0-4].npy", "anneal": "anneal-0[0-3].npy", "chat": "sft.npy"},
)


def count(text: str) -> int:
    """A whole number, 700e6 among them."""
    return int(float(text))


OPTIONS = {
    "tokens": (count, "tokens to train on"),
    "batch": (int, "rows a step"),
    "row": (int, "tokens a row"),
    "matrix_lr": (float, "peak learning rate of matrices"),
    "other_lr": (float, "peak learning rate of everything else"),
    "decay_from": (float, "progress at which learning rates begin to fall"),
    "seed": (int, "of initialisation and order of rows"),
}
HELD_OUT = {"pretrain": "pretrain-15.npy", "anneal": "anneal-04.npy"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder of .npy files and their manifest, from zamba_lm.train.corpus")
    parser.add_argument("out", type=Path, help="folder for log, checkpoint and model; a run that was cut off goes on from there")
    for name, (kind, text) in OPTIONS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help=f"{text} (default {getattr(PLAN, name)})")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="another config, for ablations")
    parser.add_argument("--no-compile", action="store_true", help="do not compile with torch.compile")
    parser.add_argument("--no-eval", action="store_true", help="leave out the bits per byte of the held-out files at the end")
    args = parser.parse_args(argv)
    try:
        run(args)
    except ZambaError as error:
        parser.error(str(error))


def run(args: argparse.Namespace) -> None:
    """Train, write the model as it ships, and measure what was written."""
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    plan = replace(PLAN, compile=not args.no_compile, **given)
    config = override(PEBBLE, dict(_field(item) for item in args.set))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Zamba(config, device=device, dtype=torch.float32).init_weights(plan.seed)
    data = Mixture(args.corpus, plan.patterns, plan.row, device, plan.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "plan.json").write_text(json.dumps(asdict(plan) | {"config": asdict(config)}, indent=1))
    train(model, data, plan, out=args.out, on_log=show)
    folder = args.out / "zamba2-pebble"
    save_weights(model, folder, dtype=torch.bfloat16, int8_rows=True)
    Tokenizer.mistral(instruct=True).save(folder)
    held_out = {} if args.no_eval else {name: file for name, file in HELD_OUT.items() if (args.corpus / file).exists()}
    shipped = load_model(folder, device=device)
    for name, file in held_out.items():
        bits = bits_per_byte(shipped, *read_held_out(args.corpus, file), row=plan.row)
        print(json.dumps({"held_out": name, "bits_per_byte": bits}), flush=True)


def _field(item: str) -> tuple[str, object]:
    name, equals, value = item.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as error:
        raise ZambaError(f"--set {item}: expected FIELD=VALUE with a JSON value, such as n_layers=9") from error


if __name__ == "__main__":
    main()
