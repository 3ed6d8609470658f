"""benchmarks/h200.py on a tiny shape: its steps, its shares, what a cut leaves behind."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import dense, h200, h200_commands, h200_files, h200_kernels, h200_model, h200_page, h200_run
from tests.model.tiny import CONFIGS
from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench import cases
from zamba_lm.eval.bench.cases import CASES, Case
from zamba_lm.eval.bench.kernels import sizes
from zamba_lm.eval.bench.report import SIDES
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.model import presets


def small_dense(monkeypatch):
    monkeypatch.setattr("zamba_lm.eval.bench.clock.ROUND", 0.001)
    small = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 99}
    monkeypatch.setattr(dense, "SHAPE", dense.SHAPE | small | {"num_hidden_layers": 2})


def test_the_dense_model_is_measured_like_the_others(monkeypatch):
    small_dense(monkeypatch)
    model = dense.Dense(torch.device("cpu"), Roof(1e9, 1e10, 1, 1, ""), 1, layers=2)
    for context in (5, 3000):
        row = model.row(1, context)
        assert row.seconds.median > 0 and row.cost.bytes > 0 and row.side == "transformers"


def test_what_a_step_of_the_dense_model_moves():
    config = dense.shape()
    parameters = 7_248_023_552
    cost = dense.cost(config, parameters, 1, 512)
    assert cost.bytes == pytest.approx(2 * 7.11e9 + 512 * 131072, rel=1e-2)


def quick(monkeypatch, folder, *words):
    """Run benchmarks/h200.py on a tiny shape, as if its cases were registered; what it left, and the page."""
    tiny = [
        Case(kind="decode", preset="tiny", context=4, reach=1.0, hf=1.0),
        Case(kind="prefill", preset="tiny", context=8, reach=1.0, hf=1.0),
        Case(kind="train-step", preset="tiny", context=8, reach=1.0, hf=1.0, recompute=True),
        Case(kind="decode", preset="tiny", batch=2, context=4, reach=1.0),
        Case(kind="start", preset="tiny", context=8, reach=1.0),
    ]
    small_dense(monkeypatch)
    monkeypatch.setitem(presets.PRESETS, "tiny", CONFIGS["zamba2, everything"])
    monkeypatch.setattr(Roof, "of", classmethod(lambda cls, device, dtype: cls(1e9, 1e10, 10**9, 64, "float32")))
    monkeypatch.setattr("zamba_lm.eval.bench.sides.DEVICE", "CPU")
    monkeypatch.setattr("zamba_lm.eval.bench.start._process", lambda *_: {"prepare": 0.1, "first": 0.5, "tokens": 0.6})
    for place in (h200_run, h200_page, cases):
        monkeypatch.setattr(place, "CASES", tiny)
    for place, name in ((h200_run, "SWEPT"), (h200_run, "KERNEL_PRESETS"), (h200_page, "SWEPT"), (h200_page, "KERNEL_PRESETS")):
        monkeypatch.setattr(place, name, ("tiny",))
    options = ["--device", "cpu", "--presets", "tiny", "--sweep", "3,5,9", "--rounds", "1", "--out", str(folder), *words]
    monkeypatch.setattr("sys.argv", ["h200.py", *options])
    h200.main()
    reports = h200_files.read([folder])
    return reports, h200.write(folder / "page", [folder], "abc").read_text() if reports else ""


def test_everything_but_kernels(monkeypatch, tmp_path, capsys):
    reports, page = quick(monkeypatch, tmp_path, "--parts", "ours,theirs,start,sweep,dense")
    assert "FAILED" not in capsys.readouterr().out
    assert [report["kind"] for report in reports] == ["decode", "prefill", "train-step", "decode", "start", "decode", "decode"]
    sides = [[row["side"] for row in report["rows"]] for report in reports]
    assert sides[:4] == [["zamba-lm", "transformers"]] * 3 + [["zamba-lm"]]
    assert sides[4] == ["zamba-lm"] * 2 + ["transformers"] * 2 and sides[6] == ["transformers"] * 3
    assert sides[5] == ["zamba-lm"] * 3 + ["transformers"] * 3
    assert all(report["agreement"]["ok"] and report["rows"][0]["speed_up"] for report in reports[:3])
    assert reports[2]["agreement"]["our_gradient"] is not None and reports[0]["agreement"]["our_gradient"] is None
    assert (
        "| decode tiny 1 x 4 |" in page and "| tiny | transformers | 9 |" in page and "| mistral-7b | transformers | 9 |" in page
    )
    assert "| tiny | transformers | 500 ms | cold Triton cache" in page and "at commit abc" in page
    assert str(tmp_path) not in page


def test_kernels(monkeypatch, tmp_path, capsys):
    plan = h200_run.quick_plan
    monkeypatch.setattr(h200_run, "quick_plan", lambda *how: replace(plan(*how), ops=("norm", "rope"), least=0.001))
    reports, page = quick(monkeypatch, tmp_path, "--parts", "kernels")
    assert "FAILED" not in capsys.readouterr().out
    assert {row["kernel"] for row in reports[0]["rows"]} == {"norm", "norm, forward + backward", "rope"}
    assert "### tiny" in page and "Not measured, kernels" not in page


def test_kernels_are_compiled_by_other_processes():
    plan = h200_kernels.quick_plan(CONFIGS["zamba"], torch.device("cpu"), Roof(1e9, 1e10, 1, 1, ""), 1)
    work = [(plan, size) for size in sizes(replace(plan, ops=("norm",)))]
    h200_kernels.warm(work[:1], 1)
    for _, (case, rows, tokens) in work:
        h200_kernels._touch(plan, [case.name, rows, tokens])


def test_somebody_faster_is_named():
    row = {"kernel": "conv", "rows": 1, "tokens": 9, "side": "them", "ours": False, "part": False, "ratio": 0.5}
    report = {"kind": "kernels", "model": {"name": "tiny"}, "rows": [row | {"seconds": {"median": 1e-3}}]}
    assert "| tiny | conv | 1 | 9 | 2 ms | them | 1 ms |" in h200_page.slower_table([report])
    report["rows"][0]["part"] = True
    assert "None of those measured" in h200_page.slower_table([report])


def test_a_budget_ends_it_with_what_there_is(monkeypatch, tmp_path, capsys):
    reports, _ = quick(monkeypatch, tmp_path, "--parts", "ours", "--budget", "0.0001")
    assert len(reports) <= 1 and "no time left for: ours: decode tiny 2 x 4" in capsys.readouterr().out


def test_a_step_that_fails_leaves_the_others_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(h200_model.peer, "build", lambda model: (_ for _ in ()).throw(RuntimeError("no peer today")))
    reports, _ = quick(monkeypatch, tmp_path, "--parts", "ours,theirs")
    assert len(reports) == 4 and all(report["agreement"] is None for report in reports)
    assert "outputs: tiny" in (out := capsys.readouterr().out) and "no peer today" in out


def test_lines_keep_what_grew_and_survive_a_cut(tmp_path):
    lines = h200_files.Lines(tmp_path / "a" / "run.jsonl")
    lines.keep({"x": {"rows": [1]}, "y": {"rows": []}})
    lines.keep({"x": {"rows": [1]}, "y": {"rows": [2]}})
    assert len(lines.file.read_text().splitlines()) == 3
    with lines.file.open("a") as stream:
        stream.write('{"id": "z", "repo')
    assert h200_files.read([tmp_path / "a"]) == [{"rows": [1]}, {"rows": [2]}]


def test_shares_hold_everything_once(monkeypatch, tmp_path):
    monkeypatch.setattr(Roof, "of", classmethod(lambda cls, device, dtype: cls(1e9, 1e10, 10**9, 64, "float32")))
    found = []
    for number in range(len(h200_commands.SHARES)):
        args = h200._parser().parse_args([*h200_commands.share_words(number), "--device", "cpu", "--out", str(tmp_path)])
        steps = h200_run.Run(args).steps(args.parts.split(","), args.presets.split(","))
        found += [name for name, _ in steps]
    assert len(set(found)) == len(found)
    assert {f"ours: {case.name}" for case in CASES if case.kind != "start"} < set(found)
    assert {f"theirs: {case.name}" for case in CASES if case.hf and case.kind != "start"} < set(found)
    assert [name for name in found if name.startswith("start")] == [f"{CASES[-1].name}, {side}" for side in SIDES]
    for preset in h200_commands.KERNEL_PRESETS:
        assert any(name.startswith(f"kernels {preset}: ") for name in found)
    contexts = len(h200_commands.SWEEP)
    assert sum(name.startswith("sweep: ") for name in found) == contexts * (2 * len(h200_commands.SWEPT) + 1)


def test_shares_run_side_by_side_and_are_stopped_when_late(monkeypatch, tmp_path, capsys):
    begun = []

    def start(number, n_gpus, budget, out, passed):
        begun.append((number, number % n_gpus))
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)" if number == 1 else ""])

    monkeypatch.setattr(h200, "_start", start)
    monkeypatch.setattr(h200, "LATE", 1)
    h200.spread(2, 1.0, tmp_path, [])
    said = capsys.readouterr().out
    assert begun == [(0, 0), (1, 1), (2, 0), (3, 1)] and "share 1 was stopped" in said and "share 3 ended with 0" in said


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(ZambaError, match="nothing was measured in"):
        h200.write(tmp_path, [tmp_path], "")
