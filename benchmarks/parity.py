"""How far our logits lie from transformers', for every combination of features that tests/parity knows.

    python -m benchmarks.parity --write

Each row is a small random model: saved by us, read by transformers, saved by transformers, read by us. The table shows the
largest difference of a logit over 2 texts of 70 tokens in float32, and whether the weights came back bit for bit. ``--write``
files it as benchmarks/results/parity-DATE.md. The exit code is 1 when a row exceeds the tolerance.
"""

import argparse
import datetime
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

import zamba_lm
from tests.model.tiny import random_ids
from tests.numerics.tolerances import TOLERANCES
from tests.parity import theirs
from tests.parity.cases import CASES, CLAMP, FULL, case_model
from zamba_lm.model.load import load_model
from zamba_lm.model.zamba import Zamba

ROOT = Path(__file__).parents[1]
TOLERANCE = TOLERANCES["parity", torch.float32][0]
IDS = random_ids(2, 70)
LONG = FULL.replace("RoPE", "long-context RoPE")


@dataclass(frozen=True)
class Row:
    name: str
    difference: float
    spread: float  # standard deviation of the logits
    returned: bool  # the weights came back bit for bit

    @property
    def good(self) -> bool:
        return self.difference <= TOLERANCE and self.returned


def measure(name: str) -> Row:
    model = case_model(name)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "ours"))
        other = theirs.read(Path(folder, "ours"), model.config)
        other.save_pretrained(Path(folder, "theirs"))
        back = load_model(Path(folder, "theirs")).state_dict()
    logits = ours(model)
    returned = all(torch.equal(tensor, back[key]) for key, tensor in model.state_dict().items())
    return Row(name, largest(logits - theirs.logits(other, IDS)), logits.std().item(), returned)


@torch.inference_mode()
def ours(model: Zamba) -> torch.Tensor:
    return model.logits(IDS)


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


def on_purpose() -> dict[str, float]:
    """Largest differences where we follow the models' authors and transformers does not."""
    free, clamped, long = case_model(FULL), case_model(FULL), case_model(LONG)
    for layer in free.layers:
        layer.mixer.c = replace(free.config, dt_limit=(0.0, float("inf")))
    with tempfile.TemporaryDirectory() as folder:
        long.save(folder)
        unscaled = {"rope_parameters": {"rope_type": "default", "rope_theta": long.config.rope_theta}}
        their_long = theirs.logits(theirs.read(Path(folder), long.config, **unscaled), IDS)
    return {
        f"no clamp of the time step, instead of transformers' {CLAMP[0]:g} (some time steps of this model are smaller)": largest(
            ours(free) - ours(clamped)
        ),
        "long-context RoPE with the rescaled base, which transformers leaves out": largest(ours(long) - their_long),
    }


def table(rows: list[Row]) -> str:
    lines = ["| model | largest difference | spread of the logits | weights back bit for bit |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {r.difference:.1e} | {r.spread:.2f} | {'yes' if r.returned else '**no**'} |" for r in rows]
    return "\n".join(lines)


def commit() -> str:
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = " and uncommitted changes" if git("status", "--porcelain", "src") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def header() -> str:
    return (
        f"Measured {datetime.date.today()} at commit {commit()} with `python -m benchmarks.parity"
        f"{''.join(' ' + word for word in sys.argv[1:])}`: {platform.machine()}, {torch.get_num_threads()} thread, "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"zamba-lm {zamba_lm.__version__}. float32, {IDS.shape[0]} texts of {IDS.shape[1]} tokens, tolerance {TOLERANCE:g}."
    )


def report(rows: list[Row]) -> str:
    worst = max(rows, key=lambda row: row.difference)
    good = sum(row.good for row in rows)
    summary = f"{good} of {len(rows)} agree; the largest difference of all is {worst.difference:.1e} ({worst.name})."
    purpose = "\n".join(f"- {what}: {much:.1e}" for what, much in on_purpose().items())
    notes = (
        "Both sides compute the same function here: our models are given transformers' clamp of the time step, and transformers\n"
        "is given the rescaled RoPE base. Where we differ on purpose (docs/numerics.md), the same texts come out this far apart:"
    )
    return f"# Beside transformers: logits\n\n{header()}\n\n{summary}\n\n{table(rows)}\n\n{notes}\n\n{purpose}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="file the table under benchmarks/results/")
    write = parser.parse_args().write
    rows = [measure(name) for name in CASES]
    text = report(rows)
    print(text)
    if write:
        target = ROOT / "benchmarks" / "results" / f"parity-{datetime.date.today()}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
