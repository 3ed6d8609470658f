"""``bench``: what people see, what JSON holds, and how mistakes are told."""

import json

import pytest

from zamba_lm.cli import bench

QUICK = ("--device", "cpu", "--dtype", "fp32", "--repeats", "1")
COLUMNS = ("time", "tokens/s", "peak GB", "GB", "TFLOP", "of copy", "of matrix", "limit", "speed-up")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Rates of the device are given, and rounds are short."""
    from zamba_lm.eval.bench.roof import Roof

    monkeypatch.setattr(Roof, "of", classmethod(lambda cls, device, dtype: cls(1e9, 1e10, 10**9, 64, "float32")))
    monkeypatch.setattr("zamba_lm.eval.bench.clock.ROUND", 0.001)


def rows(text, side="zamba-lm"):
    return [line.split() for line in text.splitlines() if line.startswith(side)]


def test_decode_prints_a_table_and_writes_json(run, folder, tmp_path):
    file = tmp_path / "decode.json"
    result = run("bench", "decode", "--model", folder, "--batch", "1,2", "--context", "5", *QUICK, "--json", file)
    assert result.code == 0 and result.err == ""
    assert [name for name in COLUMNS if name not in result.out] == []
    assert [row[1:3] for row in rows(result.out)] == [["1", "5"], ["2", "5"]]
    assert "copies 1 GB/s" in result.out and "multiplies 0.01 TFLOP/s (64^3, float32)" in result.out
    document = json.loads(file.read_text())
    assert document["schema"] == 1 and len(document["rows"]) == 2 and document["options"]["context"] == "5"
    assert document["command"].startswith("zamba-lm bench decode --model ")


def test_against_transformers_shows_both_sides_and_who_was_missing(run, folder):
    result = run("bench", "prefill", "--model", folder, "--context", "6", "--against", "transformers", *QUICK)
    assert result.code == 0 and len(rows(result.out)) == len(rows(result.out, "transformers")) == 1
    assert "outputs agree: logits off by" in result.out and "mamba-ssm not installed" in result.out
    assert " x " in next(line for line in result.out.splitlines() if line.startswith("zamba-lm"))


def test_disagreement_is_loud(run, folder, monkeypatch):
    from zamba_lm.eval.bench import probe

    monkeypatch.setattr(probe, "_their_logits", lambda theirs, ids: theirs(ids, use_cache=False).logits.float() * 1.5)
    result = run("bench", "decode", "--model", folder, "--context", "5", "--against", "transformers", *QUICK)
    assert "OUTPUTS DISAGREE, no speed-up is shown: their logits are off by" in result.out
    assert not any(" x " in line for line in result.out.splitlines() if line.startswith("zamba-lm"))


def test_train_step_and_kernels(run, folder):
    result = run("bench", "train-step", "--model", folder, "--context", "6", "--recompute", *QUICK)
    assert result.code == 0 and "with recomputation" in result.out
    result = run("bench", "kernels", "--model", folder, "--context", "6", "--op", "norm,conv", *QUICK)
    assert result.code == 0 and "conv, forward + backward" in result.out and "reference" in result.out


def test_a_random_preset_needs_no_files(run):
    result = run("bench", "decode", "--preset", "zamba2-1.2b", "--random", "--layers", "1", "--context", "3", *QUICK)
    assert result.code == 0 and "zamba2-1.2b (first 1 layers)" in result.out and "random weights" in result.out


def test_start_runs_in_processes_of_its_own(run, folder):
    result = run("bench", "start", "--model", folder, "--context", "4", "--device", "cpu", "--dtype", "fp32")
    assert result.code == 0 and "cold Triton cache" in result.out and "warm Triton cache" in result.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("decode", "--preset", "zamba2-2.8b", "--random"), "zamba2-2.7b"),
        (("decode", "--preset", "zamba2-2.7b"), "--random"),
        (("prefill", "--batch", "1,two"), "--batch"),
        (("kernels", "--op", "linaer", "--context", "4"), "linear"),
        (("decode", "--against", "llama"), "transformers"),
        (("decode", "--json", "no/such/folder/x.json"), "no folder"),
        (("decode", "--json", "."), "this is a folder"),
        (("start", "--context", "4,5"), "start measures one length"),
        (("decode", "--seed", "-1"), "--seed -1: expected a whole number from 0"),
        (("decode", "--seed", str(2**63)), "--seed 9223372036854775808: expected a whole number from 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes_are_one_line(run, args, said):
    result = run("bench", *args, "--device", "cpu")
    assert result.code == 1 and result.out == "" and result.err.count("\n") == 1
    assert result.err.startswith("error: ") and said in result.err


def test_a_model_too_large_is_told_before_anything_happens(run, monkeypatch):
    monkeypatch.setattr("zamba_lm.eval.bench.subject.free_bytes", lambda device: 2 * 10**9)
    result = run("bench", "decode", "--preset", "zamba2-7b", "--random", "--device", "cpu")
    assert result.code == 1 and "(14.7 GB are weights), and cpu has 2.0 GB free" in result.err


@pytest.mark.parametrize("command", [c.name or c.callback.__name__ for c in bench.app.registered_commands])
def test_every_subcommand_explains_itself(run, command):
    result = run("bench", command, "--help")
    assert result.code == 0 and "Examples:" in result.out and f"zamba-lm bench {command}" in result.out


def test_bench_lists_its_commands(run):
    result = run("bench", "--help")
    assert result.code == 0 and all(name in result.out for name in ("decode", "prefill", "train-step", "kernels", "start"))
