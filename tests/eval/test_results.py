"""The page and the picture that are made of a run's JSON."""

import json
import shlex

import pytest

from benchmarks import h200_commands, h200_files, h200_page
from tests.model.tiny import CONFIGS
from tools import plot_gpu
from zamba_lm.cli import bench
from zamba_lm.eval.bench.cases import CASES
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
    page = h200_page.page(h200_files.read([folder]))
    assert [case.name for case in CASES if f"| {case.name} |" not in page] == []
    table = page.split("## The cases")[1].split("Bold:")[0].splitlines()
    assert sum("| not measured |" in line for line in table) == len(CASES) - 2
    assert [line for line in table if line.count("not measured") == 2], "others are marked too"
    assert "## From weights in memory to the first token\n\nNot measured." in page
    assert f"Not measured, kernels: {', '.join(h200_commands.KERNEL_PRESETS)}." in page
    assert "Not measured, contexts: zamba2-2.7b, zamba-7b-v1, mistral-7b." in page
    assert "## Errors" in page and "float64" in page and "| yes |" in page
    assert "### tiny" in page and "norm, forward + backward" in page
    assert "## Contexts of all lengths" in page and "| tiny | zamba-lm | 12 |" in page
    rows = [line for line in page.splitlines() if line.startswith("| " + CASES[0].name)]
    assert len(rows) == 1 and " x |" in rows[0] and "transformers 79.9 ms, vLLM 3.64 ms" in rows[0]


def test_every_table_has_as_many_cells_as_its_head(folder):
    for block in h200_page.page(h200_files.read([folder])).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


CHOICES = ("--state-dtype", "--recompute", "--no-merge")


def test_commands_are_ones_that_bench_knows():
    found = h200_commands.commands("out")
    assert len(found) >= len(CASES) + 7 and len(set(found)) == len(found)
    known = {command.name or command.callback.__name__ for command in bench.app.registered_commands}
    for line in found[:-1]:
        words = shlex.split(line)
        assert words[:2] == ["zamba-lm", "bench"] and words[2] in known
        options = {word for word in words if word.startswith("--")}
        assert options <= {"--preset", "--random", "--context", "--batch", "--against", "--json", *CHOICES}


def test_files_are_named_after_cases():
    assert h200_commands.slug("decode zamba2-2.7b 1 x 512, bfloat16 states") == "decode-zamba2-2.7b-1-x-512-bfloat16-states"


def test_the_picture(folder, tmp_path):
    found = plot_gpu.lines([folder / "a.json", folder / "d.json"])
    assert sorted(found[("tiny", "zamba-lm")]) == [3, 4, 6, 12] and sorted(found[("tiny", "transformers")]) == [4]
    plot_gpu.draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
