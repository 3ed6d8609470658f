"""The page and the picture that are made of a run's JSON."""

import json
import shlex

import pytest
import torch

from benchmarks import dense, h200, h200_commands, h200_model, h200_page
from tests.model.tiny import CONFIGS
from tools import plot_gpu
from zamba_lm.cli import bench
from zamba_lm.eval.bench import cases
from zamba_lm.eval.bench.cases import CASES, Case
from zamba_lm.eval.bench.job import Options, run
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.model import presets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of a tiny shape, as if some of them were registered cases."""
    target = tmp_path_factory.mktemp("runs")
    common = {"preset": "tiny", "random": True, "dtype": "fp32", "repeats": 2, "device": "cpu", "context": "4"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", CONFIGS["zamba2, everything"])
        patch.setattr(Roof, "of", classmethod(lambda cls, device, dtype: cls(1e9, 1e10, 10**9, 64, "float32")))
        patch.setattr("zamba_lm.eval.bench.clock.ROUND", 0.001)
        patch.setattr("zamba_lm.eval.bench.sides.DEVICE", "CPU")
        patch.setattr("zamba_lm.eval.bench.whole.find", lambda kind, *_: next(case for case in CASES if case.kind == kind))
        for name, options in {
            "a": {"kind": "decode", "against": "transformers"},
            "b": {"kind": "train-step", "against": "transformers"},
            "c": {"kind": "kernels", "op": "norm"},
            "d": {"kind": "decode", "context": "3,6,12"},
        }.items():
            (target / f"{name}.json").write_text(json.dumps(run(Options(**common | options)).plain()))
    return target


def test_the_page_holds_every_case_and_what_was_measured(folder):
    page = h200_page.page(h200_page.read([folder]))
    assert [case.name for case in CASES if f"| {case.name} |" not in page] == []
    assert page.count("not measured") == len(CASES) - 2 + page.split("## The cases")[0].count("not measured")
    assert "## Errors" in page and "float64" in page and "| yes |" in page
    assert "### tiny" in page and "norm, forward + backward" in page
    assert "## Contexts of all lengths" in page and "| tiny | zamba-lm | 12 |" in page
    rows = [line for line in page.splitlines() if line.startswith("| " + CASES[0].name)]
    assert len(rows) == 1 and " x |" in rows[0] and "transformers 79.9 ms, vLLM 3.64 ms" in rows[0]


def test_every_table_has_as_many_cells_as_its_head(folder):
    for block in h200_page.page(h200_page.read([folder])).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_commands_are_ones_that_bench_knows():
    found = h200_commands.commands("out")
    assert len(found) >= len(CASES) + 7 and len(set(found)) == len(found)
    known = {command.name or command.callback.__name__ for command in bench.app.registered_commands}
    for line in found[:-1]:
        words = shlex.split(line)
        assert words[:2] == ["zamba-lm", "bench"] and words[2] in known
        options = {word for word in words if word.startswith("--")}
        assert options <= {"--preset", "--random", "--context", "--batch", "--against", "--json", "--state-dtype", "--recompute"}


def test_files_are_named_after_cases():
    assert h200_commands.slug("decode zamba2-2.7b 1 x 512, bfloat16 states") == "decode-zamba2-2.7b-1-x-512-bfloat16-states"


def test_the_picture(folder, tmp_path):
    found = plot_gpu.lines([folder / "a.json", folder / "d.json"])
    assert sorted(found[("tiny", "zamba-lm")]) == [3, 4, 6, 12] and sorted(found[("tiny", "transformers")]) == [4]
    plot_gpu.draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_dense_model_is_measured_like_the_others(monkeypatch):
    monkeypatch.setattr("zamba_lm.eval.bench.clock.ROUND", 0.001)
    small = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 99}
    monkeypatch.setattr(dense, "SHAPE", dense.SHAPE | small)
    model = dense.build(2, torch.device("cpu"))
    for context in (5, 3000):
        row = dense.row(model, 100_000, 1, context, torch.device("cpu"), Roof(1e9, 1e10, 1, 1, ""), 1)
        assert row.seconds.median > 0 and row.cost.bytes > 0 and row.side == "transformers"


def test_what_a_step_of_the_dense_model_moves():
    config = dense.MistralConfig(**dense.SHAPE)
    parameters = 7_248_023_552
    cost = dense.cost(config, parameters, 1, 512)
    assert cost.bytes == pytest.approx(2 * 7.11e9 + 512 * 131072, rel=1e-2)


def quick(monkeypatch, folder, *words):
    """Run benchmarks/h200.py on a tiny shape, as if its cases were registered."""
    tiny = [
        Case(kind="decode", preset="tiny", context=4, reach=1.0, hf=1.0),
        Case(kind="prefill", preset="tiny", context=8, reach=1.0, hf=1.0),
        Case(kind="train-step", preset="tiny", context=8, reach=1.0, hf=1.0, recompute=True),
        Case(kind="decode", preset="tiny", batch=2, context=4, reach=1.0),
    ]
    monkeypatch.setitem(presets.PRESETS, "tiny", CONFIGS["zamba2, everything"])
    monkeypatch.setattr(Roof, "of", classmethod(lambda cls, device, dtype: cls(1e9, 1e10, 10**9, 64, "float32")))
    monkeypatch.setattr("zamba_lm.eval.bench.clock.ROUND", 0.001)
    monkeypatch.setattr("zamba_lm.eval.bench.sides.DEVICE", "CPU")
    for place in (h200, h200_page, cases):
        monkeypatch.setattr(place, "CASES", tiny)
    for name in ("SWEPT", "KERNEL_PRESETS"):
        monkeypatch.setattr(h200, name, ("tiny",))
    options = ["--device", "cpu", "--presets", "tiny", "--sweep", "3,5,9", "--rounds", "1", "--out", str(folder), *words]
    monkeypatch.setattr("sys.argv", ["h200.py", "--quick", *options])
    h200.main()
    return json.loads(next(folder.glob("h200-*.json")).read_text()), next(folder.glob("h200-*.md"), None)


def test_everything_in_one_process(monkeypatch, tmp_path, capsys):
    reports, page = quick(monkeypatch, tmp_path, "--parts", "ours,theirs,sweep")
    assert "FAILED" not in capsys.readouterr().out
    assert [report["kind"] for report in reports] == ["decode", "prefill", "train-step", "decode", "decode"]
    sides = [[row["side"] for row in report["rows"]] for report in reports]
    assert sides == [["zamba-lm", "transformers"]] * 3 + [["zamba-lm"], ["zamba-lm"] * 3 + ["transformers"] * 3]
    assert all(report["agreement"]["ok"] and report["rows"][0]["speed_up"] for report in reports[:3])
    assert reports[2]["agreement"]["our_gradient"] is not None and reports[0]["agreement"]["our_gradient"] is None
    assert "| decode tiny 1 x 4 |" in page.read_text() and "| tiny | transformers | 9 |" in page.read_text()
    assert str(tmp_path) not in page.read_text()


def test_a_budget_ends_it_with_what_there_is(monkeypatch, tmp_path, capsys):
    reports, _ = quick(monkeypatch, tmp_path, "--parts", "ours", "--budget", "0.0001")
    assert len(reports) <= 1 and "no time left for: ours: decode tiny 2 x 4" in capsys.readouterr().out


def test_a_step_that_fails_leaves_the_others_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(h200_model.peer, "build", lambda model: (_ for _ in ()).throw(RuntimeError("no peer today")))
    reports, _ = quick(monkeypatch, tmp_path, "--parts", "ours,theirs")
    assert len(reports) == 4 and all(report["agreement"] is None for report in reports)
    assert "outputs: tiny" in (out := capsys.readouterr().out) and "no peer today" in out
