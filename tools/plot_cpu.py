"""Draw decoding speed from a result of benchmarks/cpu.py: python tools/plot_cpu.py RESULT.md PICTURE.png"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"zamba-lm": "#2a6f97", "transformers": "#b8b8b8"}


def read(result: Path) -> dict[str, dict[str, float]]:
    """Tokens a second by case and side, from the table."""
    found: dict[str, dict[str, float]] = {}
    for line in result.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 9 and cells[2] in COLOURS:
            found.setdefault(cells[0], {})[cells[2]] = float(cells[6])
    return found


def draw(speeds: dict[str, dict[str, float]], picture: Path) -> None:
    figure, panels = plt.subplots(1, len(speeds), figsize=(8, 2.8), dpi=110)
    for axes, (case, sides) in zip(panels, speeds.items(), strict=True):
        bars = axes.bar(list(sides), list(sides.values()), color=[COLOURS[side] for side in sides], width=0.6)
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.set_title(case, fontsize=10)
        axes.margins(y=0.18)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("tokens a second, bf16")
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    draw(read(Path(sys.argv[1])), Path(sys.argv[2]))
