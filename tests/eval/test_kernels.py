"""Every op has a case, every case builds and agrees with itself, and a wrong implementation is not timed."""

import pytest
import torch

from tests.model.tiny import CONFIGS, FAMILIES
from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench.kernel_cases import KERNELS
from zamba_lm.eval.bench.kernel_work import Draw, outputs, with_gradients
from zamba_lm.eval.bench.kernels import Plan, kernels
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.model.presets import PRESETS
from zamba_lm.ops import dispatch
from zamba_lm.ops.dispatch import Implementation

CPU = torch.device("cpu")
ROOF = Roof(1e9, 1e10, 1, 1, "float32")


def plan(name, *ops, dtype="float32", **more):
    sizes = {"batches": (2,), "contexts": (9,), "repeats": 1}
    return Plan(config=CONFIGS[name], dtype=dtype, device=CPU, roof=ROOF, ops=ops, **sizes | more)


def test_every_op_is_measured():
    assert {case.op for case in KERNELS} == set(dispatch.OPS)


def test_names_are_unique():
    assert len({case.name for case in KERNELS}) == len(KERNELS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_published_shape_has_its_mixer_and_attention(preset):
    ops = {case.op for case in KERNELS if case.fits(PRESETS[preset])}
    mixer = {"ssd", "mamba2_step", "gated_norm"} if PRESETS[preset].family == "zamba2" else {"scan", "mamba1_step"}
    assert ops >= mixer | {"conv", "linear", "gated_linear", "attention", "norm", "xent"}


@pytest.mark.parametrize("name", FAMILIES)
def test_all_cases_run_and_agree(name, monkeypatch):
    xent = dispatch.OPS["xent"]  # without the one that compiles for seconds
    monkeypatch.setattr(xent, "implementations", tuple(i for i in xent.implementations if i.name != "compiled"))
    rows = kernels(plan(name))
    assert {row.kernel for row in rows} == {case.name for case in KERNELS if case.fits(CONFIGS[name])}
    wrong = [(row.kernel, row.side, row.note) for row in rows if row.seconds is None]
    assert wrong == []
    for row in rows:
        assert row.cost.bytes > 0 and row.cost.flops > 0 and row.limit > 0
    ours = [row.ratio for row in rows if row.ours and row.ratio]
    assert min(ours) == 1.0


def test_a_model_without_calls_has_no_attention():
    assert "attention" not in {row.op for row in kernels(plan("zamba2, no calls", "attention", "norm"))}


def test_a_wrong_implementation_is_shown_without_a_time(monkeypatch):
    op = dispatch.OPS["norm"]
    wrong = Implementation("wrong", lambda x, weight, eps: x * weight * 1.1)
    monkeypatch.setattr(op, "implementations", (wrong, *op.implementations))
    row = next(row for row in kernels(plan("zamba", "norm")) if row.side == "wrong")
    assert row.seconds is None and row.ratio is None and row.error > 0.01 and row.note.startswith("wrong: ")


def test_one_that_raises_leaves_the_others_alone(monkeypatch):
    op = dispatch.OPS["norm"]

    def broken(x, weight, eps):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(op, "implementations", (Implementation("broken", broken), *op.implementations))
    rows = {row.side: row for row in kernels(plan("zamba", "norm")) if row.kernel == "norm"}
    assert rows["broken"].note == "RuntimeError: no such" and rows["reference"].seconds is not None


def test_an_unknown_op_names_those_there_are():
    with pytest.raises(ZambaError, match="--op norn: no such case.*norm"):
        kernels(plan("zamba", "norn"))


def test_inputs_are_the_same_numbers_in_every_dtype():
    narrow, wide = (Draw(CPU, torch.bfloat16, dtype, seed=3) for dtype in (None, torch.float32))
    a, b = narrow(4, 5), wide(4, 5)
    assert a.dtype == torch.bfloat16 and b.dtype == torch.float32 and torch.equal(a.float(), b)
    steps = wide.steps(1000)
    assert steps.min() >= 1e-3 and steps.max() < 0.11 and wide.rates(100).max() <= -1


def test_gradients_are_part_of_what_is_compared():
    x, y = torch.randn(2, 3), torch.randn(3)
    found = with_gradients(lambda i, leaves: leaves[0] * leaves[1], lambda i: i)((x, y))
    assert [t.shape for t in outputs(found)] == [x.shape, x.shape, y.shape]
    weights = torch.linspace(-1, 1, 6).view(2, 3)
    torch.testing.assert_close(found[1], weights * y)
