"""How the embedded model zamba2-pebble is made: its shape, its data, its run.

python -m zamba_lm.train.corpus DATA TOKENS
python -m zamba_lm.train.pebble TOKENS OUT [--tokens 700e6]
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba
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
HELD_OUT = {"pretrain": "pretrain-15.npy", "anneal": "anneal-04.npy"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "corpus", type=Path, help="folder of .npy files from zamba_lm.train.corpus (held-out files are left out by name)"
    )
    parser.add_argument("out", type=Path)
    for name in ("tokens", "batch", "row", "matrix_lr", "other_lr", "decay_from", "seed"):
        parser.add_argument("--" + name.replace("_", "-"), type=float)
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the config, for ablations"
    )
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-eval", action="store_true", help="leave out the bits per byte of the held-out files at the end")
    args = parser.parse_args()
    plan = replace(PLAN, compile=not args.no_compile, **_given(args))
    config = replace(PEBBLE, **{k: json.loads(v) for k, v in (item.split("=", 1) for item in args.set)})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Zamba(config, device=device, dtype=torch.float32).init_weights(plan.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "plan.json").write_text(json.dumps(asdict(plan) | {"config": asdict(config)}, indent=1))
    train(model, Mixture(args.corpus, plan.patterns, plan.row, device, plan.seed), plan, out=args.out, on_log=show)
    torch.save(model.state_dict(), args.out / "model.pt")
    for name, file in HELD_OUT.items():
        if not args.no_eval and (args.corpus / file).exists():
            bits = bits_per_byte(model, *read_held_out(args.corpus, file), row=plan.row)
            print(json.dumps({"held_out": name, "bits_per_byte": bits}), flush=True)


def _given(args) -> dict:
    names = ("tokens", "batch", "row", "matrix_lr", "other_lr", "decay_from", "seed")
    whole = {"tokens", "batch", "row", "seed"}
    return {n: int(v) if n in whole else v for n in names if (v := getattr(args, n)) is not None}


if __name__ == "__main__":
    main()
