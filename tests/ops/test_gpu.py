"""Finding out where Triton kernels run, and getting at them late."""

import subprocess
import sys

import pytest
import torch

from zamba_lm.errors import ZambaError
from zamba_lm.ops import dispatch, gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_has_no_triton_unless_it_is_interpreted():
    assert gpu.no_triton(CPU) == "Triton kernels need a GPU"
    with gpu.interpreted():
        assert gpu.no_triton(CPU) is None
    assert gpu.no_triton(CPU)


@pytest.mark.parametrize(("have", "runs"), [((7, 0), False), ((7, 5), True), ((9, 0), True)])
def test_old_gpus_are_told_apart(monkeypatch, have, runs):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: have)
    reason = gpu.no_triton(CUDA)
    assert (reason is None) if runs else ("7.0 is below 7.5" in reason)


def test_a_broken_triton_is_a_reason(monkeypatch):
    def broken(name):
        raise OSError("libcuda.so not found")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(gpu, "import_module", broken)
    gpu._broken.cache_clear()
    try:
        assert "OSError: libcuda.so not found" in gpu.no_triton(CUDA)
        missing, reason = dispatch.without("triton", CUDA)
        assert {"linear", "ssd", "attention"} <= set(missing) and "libcuda.so not found" in reason
        with pytest.raises(ZambaError, match="cannot run as triton on cuda.*libcuda.so not found"):
            dispatch.use("triton", CUDA)
        assert not dispatch._forced
    finally:
        gpu._broken.cache_clear()


def test_a_backend_is_forced_and_let_go_again():
    try:
        dispatch.use("reference", "cpu")
        assert all(name == "reference" and why == "forced" for _, name, why in dispatch.table("cpu"))
        with gpu.interpreted():
            dispatch.use("triton", "cpu")
            assert {name for op, name, _ in dispatch.table("cpu") if op in ("ssd", "scan", "conv")} == {"triton"}
    finally:
        dispatch.use("auto", "cpu")
    assert not dispatch._forced
    with pytest.raises(ZambaError, match="unknown backend 'cuda', expected one of auto, triton, reference"):
        dispatch.use("cuda", "cpu")
    with pytest.raises(ZambaError, match="cannot run as triton on cpu: Triton kernels need a GPU"):
        dispatch.use("triton", "cpu")


def test_importing_the_package_imports_no_triton():
    code = "import sys, zamba_lm.llm, zamba_lm.ops.ssd; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_kernel_knows_whether_it_may_start_early(monkeypatch):
    seen = {}

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: seen.update(grid=grid, args=args, **options)

    for have, early in (((8, 0), False), ((9, 0), True)):
        monkeypatch.setattr(gpu, "capability", lambda device, have=have: have)
        seen.clear()
        gpu.launch(Kernel(), (3,), 1, 2, device=CPU, pdl=True, num_warps=4)
        assert seen == {"grid": (3,), "args": (1, 2), "num_warps": 4, "PDL": early, **({"launch_pdl": True} if early else {})}
    gpu.launch(Kernel(), (1,), device=CPU)
    assert "PDL" in seen and seen["grid"] == (1,)
