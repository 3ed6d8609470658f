"""The benchmark on a GPU: graphs are what is timed, both sides agree, memory is counted, kernels are captured."""

import pytest
import torch

from tests.eval.tiny import PRESETS, tiny  # noqa: F401
from zamba_lm.eval.bench.job import Options, run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("tiny")]
GPU = {"random": True, "dtype": "fp32", "repeats": 2, "device": "cuda"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["decode", "prefill", "train-step"])
def test_against_transformers(kind, preset):
    report = run(Options(kind=kind, preset=preset, batch="1,3", context="70", against="transformers", **GPU))
    assert report.agreement.ok, report.agreement
    assert all(row.seconds and row.peak_bytes > 0 for row in report.rows)
    assert kind == "train-step" or {row.note for row in report.rows} == {"CUDA graphs", "transformers"}


def test_long_contexts_are_filled():
    report = run(Options(kind="decode", preset="tiny", batch="2", context="5000", **GPU))
    (row,) = report.rows
    assert row.note == "CUDA graphs, context of random numbers"
    assert row.peak_bytes > 2 * 5000 * PRESETS["tiny"].kv_bytes_per_token("float32")


@pytest.mark.parametrize("preset", PRESETS)
def test_kernels_are_captured_and_agree(preset):
    report = run(Options(kind="kernels", preset=preset, batch="1,2", context="70", **GPU))
    rows = [row for row in report.rows if row.side == "triton"]
    assert {row.op for row in rows} >= {"linear", "gated_linear", "conv", "attention", "norm"}
    assert [(row.kernel, row.note) for row in rows if row.seconds is None or row.note] == []
    assert torch.isfinite(torch.tensor([row.error for row in rows])).all()
