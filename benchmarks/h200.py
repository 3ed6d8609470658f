"""Everything that the results page of one GPU needs, in one process, the most important first.

    python benchmarks/h200.py --quick --budget 200 --out FOLDER       # measure, and write h200-DATE.json and .md after every step
    python benchmarks/h200.py --commands FOLDER                       # print the `zamba-lm bench` commands that measure the same
    python benchmarks/h200.py --write benchmarks/results FILE ...     # make the page of files that were written before

``--quick`` takes fewer rounds, builds each model once and leaves out what no longer fits into ``--budget`` seconds. Our side of
all cases comes before anybody else's, so that a run that is cut off has measured something.
"""

import argparse
import datetime
import json
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import h200_page  # noqa: E402
from benchmarks.h200_commands import KERNEL_PRESETS, SWEEP, SWEPT, commands  # noqa: E402
from benchmarks.h200_model import Model  # noqa: E402
from zamba_lm.errors import ZambaError  # noqa: E402
from zamba_lm.eval.bench import peer, start  # noqa: E402
from zamba_lm.eval.bench.cases import CASES, Case  # noqa: E402
from zamba_lm.eval.bench.clock import tidy  # noqa: E402
from zamba_lm.eval.bench.job import Options, blank  # noqa: E402
from zamba_lm.eval.bench.kernels import Plan, kernels  # noqa: E402
from zamba_lm.eval.bench.report import Report  # noqa: E402
from zamba_lm.eval.bench.roof import Roof  # noqa: E402
from zamba_lm.eval.bench.sides import compared  # noqa: E402
from zamba_lm.model.load import as_device  # noqa: E402

PARTS = ("ours", "theirs", "kernels", "start", "sweep")
ROUNDS = 3


class Run:
    """Steps, the clock that stops them, and the file that grows with each."""

    def __init__(self, args):
        self.device = as_device(args.device)
        self.gpu, self.layers, self.rounds = self.device.type == "cuda", args.layers, args.rounds
        self.out, self.budget, self.commit = args.out, args.budget, args.commit
        self.contexts = [int(n) for n in args.sweep.split(",")]
        self.begin = time.monotonic()
        self.roof = Roof.of(self.device, torch.bfloat16)
        self.reports: dict[str, Report] = {}
        self.models: dict[str, Model] = {}

    def steps(self, parts, presets) -> list[tuple[str, Callable]]:
        """What is to be done, the most important first: part by part, and in each preset by preset."""
        order = {
            "ours": self._ours,
            "theirs": self._theirs,
            "start": self._starts,
            "kernels": self._kernels,
            "sweep": self._sweeps,
        }
        return [step for part in parts for preset in presets for step in order[part](preset, parts)]

    def _ours(self, preset: str, parts):
        return [(f"ours: {case.name}", partial(self.case, case, ours=True)) for case in _cases(preset)]

    def _theirs(self, preset: str, parts):
        known = [case for case in _cases(preset) if case.hf]
        steps = [(f"theirs: {case.name}", partial(self.case, case, ours=False)) for case in known]
        return [(f"outputs: {preset}", partial(self.outputs, preset)), *steps] if steps else []

    def _starts(self, preset: str, parts):
        return [(case.name, partial(self.start, case)) for case in CASES if case.preset == preset and case.kind == "start"]

    def _kernels(self, preset: str, parts):
        return [(f"kernels {preset}", partial(self.kernels, preset))] if preset in KERNEL_PRESETS else []

    def _sweeps(self, preset: str, parts):
        sides = [True, False] if "theirs" in parts else [True]
        named = {True: "ours", False: "theirs"}
        steps = [(f"sweep {preset} {n} {named[o]}", partial(self.sweep, preset, n, o)) for o in sides for n in self.contexts]
        return steps if preset in SWEPT else []

    def all(self, steps) -> None:
        for name, step in steps:
            if (spent := time.monotonic() - self.begin) > self.budget:
                print(f"no time left for: {name}", flush=True)
                continue
            try:
                step()
                said = ""
            except Exception:  # one step: the others are still worth their time
                said = " FAILED\n" + "".join(traceback.format_exc().splitlines(keepends=True)[-6:])
            tidy(self.device)
            print(
                f"{name}: {time.monotonic() - self.begin - spent:.1f} s, {time.monotonic() - self.begin:.0f} s in all{said}",
                flush=True,
            )
            try:
                self.write()
            except Exception:  # the next step is worth its time whatever the page looks like
                traceback.print_exc(limit=-3)

    def model(self, preset: str) -> Model:
        """Only one is kept: two may not fit beside what measuring needs."""
        if preset not in self.models:
            self.models.clear()
            tidy(self.device)
            self.models[preset] = Model(preset, self.device, self.roof, self.rounds, self.layers)
        return self.models[preset]

    def report(self, key: str, model: Model, kind: str, **options) -> Report:
        if key not in self.reports:
            asked = Options(kind=kind, preset=model.name, random=True, repeats=self.rounds, **options)
            self.reports[key] = blank(asked, model.subject, model.config, self.device, self.roof)
            self.reports[key].command = shlex.join(["python", "benchmarks/h200.py", *_said()])
        return self.reports[key]

    # steps

    def case(self, case: Case, ours: bool) -> None:
        model = self.model(case.preset)
        how = {"batch": str(case.batch), "context": str(case.context), "recompute": case.recompute, "state_dtype": case.state}
        report = self.report(case.name, model, case.kind, **how)
        if not ours and model.theirs is None:
            raise ZambaError(f"transformers' model of {case.preset} is not there")
        if not ours and (slow := model.slow_peer(case)):
            raise ZambaError(slow)
        self._add(report, model, model.bench(case, ours), case.kind == "train-step", ours)

    def outputs(self, preset: str) -> None:
        model = self.model(preset)
        model.compare()
        for training, agreement in model.agreements.items():
            print(f"  {'training' if training else 'inference'}: {agreement}")

    def sweep(self, preset: str, context: int, ours: bool) -> None:
        model = self.model(preset)
        if not ours and model.theirs is None:
            model.theirs = peer.build(model.model)
        report = self.report(f"sweep {preset}", model, "decode", context=",".join(map(str, self.contexts)))
        case = Case(kind="decode", preset=preset, context=context, reach=0.0)
        self._add(report, model, [replace(row, case=None) for row in model.bench(case, ours)], False, ours)

    def _add(self, report: Report, model: Model, rows: list, training: bool, ours: bool) -> None:
        """Take rows into a report, with what is known of the outputs once there are both sides."""
        report.rows = [*report.rows, *rows]
        for row in rows:
            print(f"  {row.side} {row.batch} x {row.context}: {_told(row)}")
        if not ours:
            report.peer, report.agreement = peer.describe(), model.agreements.get(training)
            report.rows = compared(report.rows, report.agreement)

    def start(self, case: Case) -> None:
        model = self.model(case.preset)
        report = self.report(case.name, model, "start", context=str(case.context))
        report.rows = start.rows(model.subject, model.place, case.context, None)
        for row in report.rows:
            print(f"  {_told(row)}")

    def kernels(self, preset: str) -> None:
        """Those of a shape: everything of the first, of the others what depends on their shapes."""
        model = self.model(preset)
        report = self.report(f"kernels {preset}", model, "kernels", batch="1,32", context="4096" if self.gpu else "32")
        contexts = (4096,) if self.gpu else (32,)
        plan = Plan(
            config=model.config, dtype="bfloat16", device=self.device, roof=self.roof, batches=(1, 32), contexts=contexts,
            repeats=self.rounds, references=not self.gpu,
        )  # fmt: skip
        report.rows = kernels(plan)

    def write(self) -> None:
        """All there is so far."""
        self.out.mkdir(parents=True, exist_ok=True)
        found = [report.plain() for report in self.reports.values() if report.rows]
        file = self.out / f"h200-{datetime.date.today()}"
        file.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        if found:
            file.with_suffix(".md").write_text(h200_page.page(found, self.commit))


def _cases(preset: str) -> list[Case]:
    return [case for case in CASES if case.preset == preset and case.kind != "start"]


def _told(row) -> str:
    if row.seconds is None:
        return row.note
    peak = f", peak {row.peak_bytes / 1e9:.2f} GB" if row.peak_bytes else ""
    return f"{row.seconds.median * 1e3:.4g} ms ({row.of_limit or 0:.0%} of the limit){peak} {row.note}"


def _said() -> list[str]:
    """The command's words without the folder, which says nothing to others."""
    words = sys.argv[1:]
    return [word for n, word in enumerate(words) if word != "--out" and (n == 0 or words[n - 1] != "--out")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--quick", action="store_true", help="measure everything in one process")
    what.add_argument("--commands", metavar="FOLDER", help="print the commands whose JSON goes to FOLDER")
    what.add_argument(
        "--write", nargs="+", type=Path, metavar="PATH", help="a folder for the page, then files or folders of JSON"
    )
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which no step is begun")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, in this order")
    parser.add_argument("--presets", default=",".join(KERNEL_PRESETS))
    parser.add_argument("--sweep", default=",".join(map(str, SWEEP)), help="contexts of the picture")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--layers", type=int, help="only the first so many: to try the script")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--commit", default="", help="for the page, where git is not at hand")
    args = parser.parse_args()
    if args.commands:
        print("\n".join(commands(args.commands)))
    elif args.write:
        target = args.write[0] / f"h200-{datetime.date.today()}.md"
        target.write_text(h200_page.page(h200_page.read(args.write[1:]), args.commit))
        print(target)
    else:
        run = Run(args)
        run.all(run.steps(args.parts.split(","), args.presets.split(",")))


if __name__ == "__main__":
    main()
