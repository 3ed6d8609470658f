"""Everything that the results page of one kind of GPU needs.

Shares of the work on several GPUs at once, and then the page:
    python benchmarks/h200.py --spread 4 --budget 180 --out FOLDER --commit HASH
One share on this GPU, which leaves FOLDER/share-0.jsonl; some parts for some models, which leave FOLDER/run.jsonl:
    python benchmarks/h200.py --share 0 --budget 180 --out FOLDER
    python benchmarks/h200.py --parts ours,theirs --presets zamba2-2.7b --out FOLDER
The page, with its JSON, of everything that was measured; the `zamba-lm bench` commands that measure the same:
    python benchmarks/h200.py --write benchmarks/results FOLDER ...
    python benchmarks/h200.py --commands FOLDER

Every step's results are appended to the file at once, so a run that is cut off keeps what it has. Both sides of a row are
measured in one process on one GPU; our side of all cases comes before anybody else's. No step begins after ``--budget`` seconds.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import h200_page  # noqa: E402
from benchmarks.h200_commands import KERNEL_PRESETS, SHARES, SWEEP, commands, share_words  # noqa: E402
from benchmarks.h200_files import read  # noqa: E402
from benchmarks.h200_run import PARTS, Run  # noqa: E402
from zamba_lm.errors import ZambaError  # noqa: E402

ROUNDS = 3
LATE = 45  # seconds that the last step may take after the budget is spent, before a share is stopped


def spread(n_gpus: int, budget: float, out: Path, passed: list[str]) -> None:
    """All shares at once, share k on GPU k (modulo ``n_gpus``); what each says goes to share-k.txt."""
    out.mkdir(parents=True, exist_ok=True)
    running = [_start(number, n_gpus, budget, out, passed) for number in range(len(SHARES))]
    for number, process in enumerate(running):
        try:
            print(f"share {number} ended with {process.wait(budget + LATE)}", flush=True)
        except subprocess.TimeoutExpired:
            process.kill()
            print(f"share {number} was stopped", flush=True)


def _start(number: int, n_gpus: int, budget: float, out: Path, passed: list[str]) -> subprocess.Popen:
    words = [sys.executable, __file__, "--share", str(number), "--budget", str(budget), "--out", str(out), *passed]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(number % n_gpus)}
    with (out / f"share-{number}.txt").open("w") as said:
        return subprocess.Popen(words, env=environment, stdout=said, stderr=subprocess.STDOUT)


def write(target: Path, paths: list[Path], commit: str) -> Path:
    """The page of everything that was measured, with its JSON beside it."""
    reports = read(paths)
    if not reports:
        raise ZambaError(f"nothing was measured in {', '.join(map(str, paths))}")
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"h200-{datetime.date.today()}.md"
    file.write_text(h200_page.page(reports, commit))
    file.with_suffix(".json").write_text(json.dumps(reports, indent=1) + "\n")
    return file


def main() -> None:
    args = _parser().parse_args()
    if args.share is not None:  # the words of a share, and those that were given besides
        args = _parser().parse_args([*share_words(args.share), *sys.argv[1:]])
    if args.commands:
        print("\n".join(commands(args.commands)))
    elif args.write:
        print(write(args.write[0], args.write[1:], args.commit))
    elif args.spread:
        spread(args.spread, args.budget, args.out, ["--rounds", str(args.rounds), "--commit", args.commit])
        print(write(args.out, [args.out], args.commit))
    else:
        run = Run(args)
        run.all(run.steps(args.parts.split(","), args.presets.split(",")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--spread", type=int, metavar="N", help="all shares at once, over N GPUs")
    what.add_argument("--share", type=int, choices=range(len(SHARES)), help="one share, in this process")
    what.add_argument("--commands", metavar="FOLDER", help="print the commands whose JSON goes to FOLDER")
    what.add_argument("--write", nargs="+", type=Path, metavar="PATH", help="a folder for the page, then files or folders")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which no step is begun")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--name", default="run", help="of the file in --out")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, in this order")
    parser.add_argument("--presets", default=",".join(KERNEL_PRESETS))
    parser.add_argument("--sweep", default=",".join(map(str, SWEEP)), help="contexts of the picture")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--layers", type=int, help="only the first so many: to try the script")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile kernels before they are measured")
    parser.add_argument("--commit", default="", help="for the page, where git is not at hand")
    return parser


if __name__ == "__main__":
    main()
