"""dispatch: what runs is the first that can, what is forced runs or says why not, and what ran can be proved."""

import importlib
from pathlib import Path

import pytest
import torch

import zamba_lm.ops
from zamba_lm.errors import ZambaError
from zamba_lm.ops import dispatch
from zamba_lm.ops.dispatch import Implementation, Op, force, record, table

CPU, META = torch.device("cpu"), torch.device("meta")
FOLDERS = sorted(path.parent for path in Path(zamba_lm.ops.__path__[0]).glob("*/reference.py"))


def not_on_cpu(device):
    return "needs a device of its own" if device.type == "cpu" else None


@pytest.fixture
def ops(monkeypatch):
    """Two ops in a table of their own: one with a fast way that does not run on a CPU."""
    dispatch.meet_all()  # while they can register where they belong
    monkeypatch.setattr(dispatch, "OPS", {})
    fast = Implementation("fast", lambda: "fast", not_on_cpu)
    plain = Implementation("reference", lambda: "plain")
    return Op("stir", (fast, plain)), Op("bake", (plain,))


def test_the_first_that_can_run_runs(ops):
    stir, bake = ops
    assert stir(CPU)() == "plain" and stir(META)() == "fast" and bake(META)() == "plain"


def test_force(ops):
    stir, _ = ops
    with force(stir="reference"):
        assert stir(META)() == "plain"
    assert stir(META)() == "fast"


def test_what_is_forced_and_cannot_run_says_why(ops):
    stir, _ = ops
    with force(stir="fast"):
        with pytest.raises(ZambaError, match="op stir cannot run as fast on cpu: needs a device of its own"):
            stir(CPU)
        assert stir(META)() == "fast"


def test_force_of_an_unknown_implementation_lists_the_known_ones(ops):
    stir, _ = ops
    with force(stir="triton"), pytest.raises(ZambaError, match="op stir has no implementation 'triton'; it has fast, reference"):
        stir(CPU)


def test_force_of_an_unknown_op_suggests_a_near_name(ops):
    with pytest.raises(ZambaError, match=r"there is no op 'stri', did you mean 'stir'\?"), force(stri="fast"):
        pass
    with pytest.raises(ZambaError, match="there is no op 'xyz'; ops are stir, bake"), force(xyz="fast"):
        pass
    with pytest.raises(ZambaError, match="'stri'"), force(bake="reference", stri="fast"):
        pass
    assert not dispatch._forced, "a refused force must force nothing"


def test_nested_force_restores_what_was_forced_before(ops):
    stir, bake = ops
    with force(stir="reference"):
        with force(stir="fast", bake="reference"):
            assert stir(META)() == "fast"
        assert stir(META)() == "plain" and dispatch._forced == {"stir": "reference"}
    assert not dispatch._forced


def test_force_ends_with_an_exception(ops):
    stir, _ = ops
    with pytest.raises(RuntimeError), force(stir="reference"):
        raise RuntimeError
    assert stir(META)() == "fast"


def test_record_lists_what_ran_in_order(ops):
    stir, bake = ops
    stir(CPU)
    with record() as calls:
        stir(META)
        bake(META)
        stir(CPU)
        with force(stir="reference"):
            stir(META)
    stir(META)
    assert calls == [("stir", "fast"), ("bake", "reference"), ("stir", "reference"), ("stir", "reference")]


def test_records_inside_records(ops):
    """Two records that hold equal calls are still two."""
    stir, bake = ops
    with record() as outer:
        with record() as inner:
            stir(META)
        bake(META)
        with record() as empty:
            pass
        stir(CPU)
    assert inner == [("stir", "fast")] and empty == []
    assert outer == [("stir", "fast"), ("bake", "reference"), ("stir", "reference")]


def test_a_refused_call_is_not_recorded(ops):
    stir, _ = ops
    with record() as calls, force(stir="fast"), pytest.raises(ZambaError):
        stir(CPU)
    assert calls == []


def test_table(ops):
    assert table("cpu") == [("bake", "reference", "only one"), ("stir", "reference", "fast: needs a device of its own")]
    assert table(META) == [("bake", "reference", "only one"), ("stir", "fast", "preferred here")]
    with force(stir="reference"):
        assert table(META)[1] == ("stir", "reference", "forced")
    with force(stir="fast"), pytest.raises(ZambaError, match="needs a device of its own"):
        table("cpu")


def test_the_table_holds_ops_that_nothing_has_called_yet(monkeypatch):
    met = []
    dispatch.meet_all.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "import_module", met.append)
        table()
    dispatch.meet_all.cache_clear()
    assert set(met) == {f"zamba_lm.ops.{folder.name}" for folder in FOLDERS}
    assert {"linear", "sample", "greedy", "xent", "token_scores"} <= {op for op, _, _ in table()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_op_has_a_reference_that_runs_anywhere_and_a_page(folder):
    module = importlib.import_module(f"zamba_lm.ops.{folder.name}")
    found = [value for value in vars(module).values() if isinstance(value, Op)]
    assert found
    for op in found:
        assert dispatch.OPS[op.name] is op
        (reference,) = (i for i in op.implementations if i.name == "reference")
        assert all(reference.obstacle(torch.device(device)) is None for device in ("cpu", "cuda", "mps", "meta", "xpu"))
    page = (folder / "README.md").read_text().splitlines()
    assert page[0].startswith(f"# {folder.name}") and 20 <= len(page) <= 100


def test_the_ops_are_found():
    assert {"conv", "scan", "ssd", "step", "attention", "norm", "adapter", "rope", "linear", "xent"} <= {f.name for f in FOLDERS}
