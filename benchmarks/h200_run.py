"""The steps of benchmarks/h200.py, and the clock that stops them."""

import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks.dense import Dense
from benchmarks.h200_commands import DENSE, KERNEL_PRESETS, SWEPT
from benchmarks.h200_files import Lines
from benchmarks.h200_kernels import quick_plan, warm
from benchmarks.h200_model import Model
from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench import peer, start
from zamba_lm.eval.bench.cases import CASES, Case
from zamba_lm.eval.bench.clock import allocated, tidy
from zamba_lm.eval.bench.job import Options, blank, device_facts
from zamba_lm.eval.bench.kernels import measured, sizes
from zamba_lm.eval.bench.report import SIDES, Report
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.eval.bench.sides import Place, compared
from zamba_lm.eval.bench.subject import Subject, choose
from zamba_lm.model.load import as_device

PARTS = ("ours", "theirs", "start", "kernels", "sweep", "dense")
Steps = list[tuple[str, Callable[[], None]]]


class Run:
    """What one process measures on its device."""

    def __init__(self, args):
        self.device = as_device(args.device)
        self.gpu, self.layers, self.rounds, self.workers = self.device.type == "cuda", args.layers, args.rounds, args.workers
        self.budget, self.contexts = args.budget, [int(n) for n in args.sweep.split(",")]
        self.lines = Lines(args.out / f"{args.name}.jsonl")
        self.begin = time.monotonic()
        self.roof = Roof.of(self.device, torch.bfloat16)
        self.reports: dict[str, Report] = {}
        self.models: dict[str, Model | Dense] = {}

    def steps(self, parts: list[str], presets: list[str]) -> Steps:
        """What is to be done, part by part, and in each preset by preset."""
        order = {
            "ours": self._ours,
            "theirs": self._theirs,
            "start": self._starts,
            "kernels": self._kernels,
            "sweep": self._sweeps,
            "dense": self._dense,
        }
        return [step for part in parts for step in order[part](presets)]

    def _ours(self, presets) -> Steps:
        return [(f"ours: {case.name}", partial(self.case, case, ours=True)) for name in presets for case in _cases(name)]

    def _theirs(self, presets) -> Steps:
        steps = []
        for name in presets:
            known = [(f"theirs: {case.name}", partial(self.case, case, ours=False)) for case in _cases(name) if case.hf]
            steps += [(f"outputs: {name}", partial(self.outputs, name)), *known] if known else []
        return steps

    def _starts(self, presets) -> Steps:
        cases = [case for case in CASES if case.kind == "start" and case.preset in presets]
        return [(f"{case.name}, {side}", partial(self.start, case, side)) for side in SIDES for case in cases]

    def _kernels(self, presets) -> Steps:
        names = [name for name in presets if name in KERNEL_PRESETS]
        compiled: Steps = [("kernels compiled", partial(self.warm, names))] if self.gpu else []
        return compiled + [
            (f"kernels {name}: {size[0].name} {size[1]} x {size[2]}", partial(self.kernel, name, size))
            for name in names
            for size in sizes(self._plan(name))
        ]

    def _sweeps(self, presets) -> Steps:
        """Our side of both models first."""
        return [
            (f"sweep: {name} {n}, {side}", partial(self.sweep, name, n, side == SIDES[0]))
            for side in SIDES
            for name in presets
            for n in self.contexts
            if name in SWEPT
        ]

    def _dense(self, presets) -> Steps:
        return [(f"sweep: {DENSE} {n}", partial(self.dense, n)) for n in self.contexts]

    def all(self, steps: Steps) -> None:
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
            now = time.monotonic() - self.begin
            print(f"{name}: {now - spent:.1f} s, {now:.0f} s in all{said}", flush=True)
            self.lines.keep({name: report.plain() for name, report in self.reports.items() if report.rows})

    # what steps work on

    def model(self, name: str) -> Model | Dense:
        """Only one is kept: two may not fit beside what measuring needs."""
        if name not in self.models:
            self.models.clear()
            tidy(self.device)
            how = (self.device, self.roof, self.rounds, self.layers)
            self.models[name] = Dense(*how) if name == DENSE else Model(name, *how)
        return self.models[name]

    def subject(self, preset: str) -> Subject:
        return choose(preset, True, None, self.layers, self.device, "bf16", 0)

    def report(self, key: str, preset: str, kind: str, **options) -> Report:
        if key not in self.reports:
            subject = self.subject(preset)
            asked = Options(kind=kind, preset=subject.name, random=True, repeats=self.rounds, **options)
            self.reports[key] = self._signed(blank(asked, subject, subject.config(), self.device, self.roof))
        return self.reports[key]

    def _signed(self, report: Report) -> Report:
        report.command = shlex.join(["python", "benchmarks/h200.py", *_said()])
        return report

    # steps

    def case(self, case: Case, ours: bool) -> None:
        model = self.model(case.preset)
        how = {"batch": str(case.batch), "context": str(case.context), "recompute": case.recompute, "state_dtype": case.state}
        how["merge"] = case.merge
        report = self.report(case.name, case.preset, case.kind, **how)
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
        report = self.report(f"sweep {preset}", preset, "decode", context=",".join(map(str, self.contexts)))
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

    def dense(self, context: int) -> None:
        model = self.model(DENSE)
        report = self.reports.setdefault(f"sweep {DENSE}", self._signed(model.blank()))
        report.rows = [*report.rows, model.row(1, context)]
        print(f"  {_told(report.rows[-1])}")

    def start(self, case: Case, side: str) -> None:
        self.models.clear()  # the new process has the GPU to itself
        tidy(self.device)
        place = Place(self.device, device_facts(self.device)["name"], self.roof, allocated(self.device))
        report = self.report(case.name, case.preset, "start", context=str(case.context))
        for row in start.side_rows(side, self.subject(case.preset), place, case.context):
            report.rows = [*report.rows, row]
            print(f"  {row.side}: {_told(row)}", flush=True)

    def warm(self, presets: list[str]) -> None:
        warm([(self._plan(name), size) for name in presets for size in sizes(self._plan(name))], self.workers)

    def kernel(self, preset: str, size) -> None:
        context = "4096" if self.gpu else "32"
        report = self.report(f"kernels {preset}", preset, "kernels", batch="1,32", context=context)
        found = measured(self._plan(preset), *size)
        report.rows = [*report.rows, *found]
        for row in found:
            time = f"{row.seconds.median * 1e6:.1f} us" if row.seconds else "no time"
            print(f"  {row.side}: {time}, {f'{row.error:.2g} off' if row.error is not None else ''} {row.note}")

    def _plan(self, preset: str):
        return quick_plan(self.subject(preset).config(), self.device, self.roof, self.rounds)


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
