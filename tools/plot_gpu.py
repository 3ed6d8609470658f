"""Draw time and memory of decoding against context length.

    python tools/plot_gpu.py PICTURE.png FILE.json ...

Files are those of `zamba-lm bench decode --json` or the one beside a results page; rows of batch 1 are drawn.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

COLOURS = {"zamba2-2.7b": "#2a6f97", "zamba-7b-v1": "#c1666b", "mistral-7b": "#7f7f7f"}
OTHERS = ("#5b8e7d", "#8e6c8a", "#bc8a5f")
DASHES = {"zamba-lm": "-", "transformers": "--"}
PANELS = (("seconds", "milliseconds a token", 1e3), ("peak_bytes", "device memory, GB", 1e-9))


def lines(files: list[Path]) -> dict[tuple[str, str], dict[int, dict]]:
    """Rows of batch 1 by (model, side) and context."""
    found: dict[tuple[str, str], dict[int, dict]] = {}
    for report in (report for file in files for report in reports(file)):
        for row in report["rows"]:
            if report["kind"] == "decode" and row["batch"] == 1 and row["seconds"]:
                found.setdefault((report["model"]["name"], row["side"]), {})[row["context"]] = row
    return found


def reports(file: Path) -> list[dict]:
    told = json.loads(file.read_text())
    return told if isinstance(told, list) else [told]


def draw(found: dict[tuple[str, str], dict[int, dict]], picture: Path) -> None:
    figure, panels = plt.subplots(1, len(PANELS), figsize=(9, 3.8), dpi=110)
    for axes, (key, label, scale) in zip(panels, PANELS, strict=True):
        for (model, side), rows in found.items():
            points = [(context, value(row, key) * scale) for context, row in sorted(rows.items()) if value(row, key)]
            axes.plot(*zip(*points), DASHES[side], color=colour(model, found), marker="o", ms=3, label=f"{model}, {side}")
        axes.set(xscale="log", yscale="log", xlabel="tokens in context", ylabel=label)
        axes.set_xticks(sorted({context for rows in found.values() for context in rows}))
        axes.xaxis.set_major_formatter(lambda context, _: f"{context / 1024:g}k" if context >= 1024 else f"{context:g}")
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda number, _: f"{number:g}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(picture)


def value(row: dict, key: str) -> float | None:
    return row[key]["median"] if key == "seconds" else row[key]


def colour(model: str, found: dict) -> str:
    rest = sorted({name for name, _ in found} - set(COLOURS))
    return COLOURS.get(model) or OTHERS[rest.index(model) % len(OTHERS)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    draw(lines(args.files), args.picture)
