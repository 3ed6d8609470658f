"""Draw the loss curve of a training log: python tools/plot_loss.py LOG.jsonl PICTURE.png"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"pretrain": "#2a6f97", "anneal": "#c8553d", "chat": "#588157"}


def smooth(values: list[float], width: int = 7) -> list[float]:
    """Mean over a window that shrinks at the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(w) / len(w) for w in windows]


def draw(log: list[dict], picture: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4), dpi=110)
    for stage in dict.fromkeys(e["stage"] for e in log):
        part = [e for e in log if e["stage"] == stage]
        loss = smooth([e["loss"] for e in part])
        axes.plot([e["tokens"] / 1e6 for e in part], loss, color=COLOURS.get(stage), label=stage, linewidth=1.6)
    rate = axes.twinx()
    rate.plot([e["tokens"] / 1e6 for e in log], [e["lr"] for e in log], color="#999999", linewidth=0.8, linestyle="--")
    rate.set_ylabel("share of the peak learning rate (dashed)", color="#777777")
    rate.set_ylim(0, 1.05)
    axes.set_ylim(2.1, 5.0)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("training loss, nats a token")
    axes.legend(title="stage", frameon=False)
    axes.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    draw([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()], Path(sys.argv[2]))
