"""Join the logs of a recipe's stages and draw them.

    python tools/plot_loss.py RUNS OUT

RUNS holds one run folder a stage (pretrain, anneal, sft, dpo), as tools/make_pebble.py leaves them. Writes OUT/log.jsonl, every
line of the four logs with its stage, and OUT/loss.png: the loss of the stages on text and chats with the held-out bits per byte
after each, and beside it how well dpo tells chosen from rejected answers.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ON_TEXT = {"pretrain": "#2a6f97", "anneal": "#c8553d", "sft": "#588157"}
HELD_OUT = {"eval_bpb_pretrain": "pretrain text", "eval_bpb_anneal": "anneal text", "eval_bpb_sft": "chats"}
MARKS = dict(zip(HELD_OUT, "os^"))


def joined(runs: Path) -> list[dict]:
    """The lines of all stages that were run, in their order."""
    return [
        {"stage": stage, **json.loads(line)}
        for stage in (*ON_TEXT, "dpo")
        if (runs / stage / "log.jsonl").is_file()
        for line in (runs / stage / "log.jsonl").read_text().splitlines()
    ]


def smooth(values: list[float], width: int = 7) -> list[float]:
    """Mean over a window that shrinks at the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(w) / len(w) for w in windows]


def draw(log: list[dict], picture: Path) -> None:
    figure, (text, pairs) = plt.subplots(1, 2, figsize=(10, 4), dpi=110, width_ratios=(2, 1))
    _draw_text(text, log)
    _draw_pairs(pairs, [entry for entry in log if entry["stage"] == "dpo" and "rewards/margins" in entry])
    figure.tight_layout()
    figure.savefig(picture)


def _draw_text(axes, log: list[dict]) -> None:
    """Loss in nats a token over the tokens of all stages; bits per byte where a stage ends."""
    bits, before = axes.twinx(), 0
    for stage, colour in ON_TEXT.items():
        part = [entry for entry in log if entry["stage"] == stage]
        steps = [entry for entry in part if "loss" in entry]
        if not steps:
            continue
        axes.plot([(before + e["tokens"]) / 1e6 for e in steps], smooth([e["loss"] for e in steps]), color=colour, label=stage)
        before += steps[-1]["tokens"]
        for name, mark in MARKS.items():
            found = [entry[name] for entry in part if name in entry]
            bits.plot([before / 1e6] * len(found), found, mark, color="#555555", markersize=5)
    for name, mark in MARKS.items():
        bits.plot([], [], mark, color="#555555", label=HELD_OUT[name])
    axes.set(ylim=(2.1, 5.0), xlabel="million tokens", ylabel="training loss, nats a token")
    bits.set(ylim=(0.7, 1.3), ylabel="held-out bits per byte (marks)")
    axes.legend(frameon=False, loc="upper center")
    bits.legend(frameon=False, loc="upper right")
    axes.grid(alpha=0.2)


def _draw_pairs(axes, log: list[dict]) -> None:
    """Of the pairs of a step: share told apart, and by how much."""
    steps = [entry["step"] for entry in log]
    axes.plot(steps, smooth([entry["rewards/accuracies"] for entry in log]), color="#2a6f97", label="accuracy")
    axes.plot(steps, smooth([entry["rewards/margins"] for entry in log]), color="#c8553d", label="margin of the rewards")
    axes.set(xlabel="step of dpo", ylim=(0, None))
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)


def main() -> None:
    runs, out = map(Path, sys.argv[1:3])
    log = joined(runs)
    (out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    draw(log, out / "loss.png")


if __name__ == "__main__":
    main()
