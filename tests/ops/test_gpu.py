"""Finding out where Triton kernels run, and getting at them late."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import zamba_lm.model.zamba  # noqa: F401  # an op is in the table once it is imported, and the model imports them all
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


class Compiled:
    """What ``launch`` uses of a compiled kernel: its launcher, and where somebody watches launches, Triton's own way."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, calls, watched):
        self.calls, self.watched = calls, watched

    def run(self, x, y, z, stream, function, metadata, about, enter, leave, *args):
        assert (function, metadata, about, enter, leave) == ("function", "metadata", None, None, None)
        self.calls.append(((x, y, z), args, stream))

    def __getitem__(self, grid):
        return lambda *args, stream: self.watched.append((grid, args, stream))


class Jit:
    """What ``launch`` uses of a Triton kernel: argument names, and a call that compiles and returns what it compiled."""

    arg_names = ("x", "n", "BLOCK", "WIDE")

    def __init__(self):
        self.ordinary, self.quick, self.watched = [], [], []

    def __getitem__(self, grid):
        def run(*args, **options):
            self.ordinary.append((grid, args, options))
            return Compiled(self.quick, self.watched)

        return run


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 77 + index, raising=False)
    gpu._remembers.cache_clear()
    yield
    gpu._remembers.cache_clear()
    gpu._compiled.clear()


def test_a_compiled_kernel_is_launched_by_addresses_from_the_second_time_on(one_gpu):
    kernel, x = Jit(), torch.zeros(4)
    for n in (3, 5, 32, 64, 7):  # Triton compiles for 1, for multiples of 16, and for the others
        gpu.launch(kernel, (2,), x, n, device=CUDA, BLOCK=8, WIDE=True, num_warps=1)
    assert [args[1] for _, args, _ in kernel.ordinary] == [3, 32]
    assert kernel.quick == [((2, 1, 1), (x.data_ptr(), n, 8, True), 77) for n in (5, 64, 7)]
    gpu.launch(kernel, (2,), x, 5, device=CUDA, BLOCK=16, WIDE=True, num_warps=1)
    gpu.launch(kernel, (2,), x.double(), 5, device=CUDA, BLOCK=8, WIDE=True, num_warps=1)
    gpu.launch(kernel, (2,), None, 5, device=CUDA, BLOCK=8, WIDE=True, num_warps=1)
    assert len(kernel.ordinary) == 5, "another constant, dtype or missing tensor is another kernel"


def test_who_watches_launches_sees_them(one_gpu, monkeypatch):
    kernel, x = Jit(), torch.zeros(4)
    hook = pytest.importorskip("triton").knobs.runtime.launch_enter_hook
    for calls in ([], [print], []):
        monkeypatch.setattr(hook, "calls", calls)
        gpu.launch(kernel, (2,), x, 5, device=CUDA, BLOCK=8, WIDE=True, num_warps=1)
    assert len(kernel.ordinary) == len(kernel.watched) == len(kernel.quick) == 1
    assert kernel.watched == kernel.quick


@pytest.mark.parametrize("broken", [False, True])
def test_triton_is_woken_in_the_background_for_a_gpu_alone(monkeypatch, broken):
    asked = []

    def part(name):
        asked.append(name)
        if broken:
            raise OSError("libcuda.so not found")
        return SimpleNamespace(triton_key=lambda: "", driver=SimpleNamespace(active=SimpleNamespace(utils=None)))

    monkeypatch.setattr(gpu, "import_module", part)
    monkeypatch.setattr(gpu, "Thread", lambda target, daemon: SimpleNamespace(start=target))
    gpu.wake(CPU)
    assert not asked
    gpu.wake(CUDA)
    assert asked == ["triton.runtime.cache", "triton.runtime"][: 1 if broken else 2]


def test_launches_can_be_taken(one_gpu):
    kernel, taken = Jit(), []
    with gpu.taking(lambda *launch: taken.append(launch)):
        gpu.launch(kernel, (2,), 5, device=CUDA, BLOCK=8)
        gpu.launch(interpreted := Jit(), (3,), 7, device=CPU)
    assert taken == [(kernel, (2,), (5,), {"BLOCK": 8})] and not kernel.ordinary
    assert len(interpreted.ordinary) == 1, "on a CPU kernels are interpreted, not compiled"
    gpu.launch(kernel, (2,), 5, device=CUDA, BLOCK=8, WIDE=True)
    assert len(kernel.ordinary) == 1


def test_what_only_triton_can_judge_goes_the_ordinary_way(one_gpu, monkeypatch):
    kernel = Jit()
    for argument in (object(), True):
        for _ in range(2):
            gpu.launch(kernel, (1,), argument, 5, device=CUDA, BLOCK=8, WIDE=True)
    assert len(kernel.ordinary) == 4 and not kernel.quick
    monkeypatch.setattr(gpu, "known_triton", lambda: False)
    gpu._remembers.cache_clear()
    for _ in range(2):
        gpu.launch(kernel, (1,), torch.zeros(4), 5, device=CUDA, BLOCK=8, WIDE=True)
    assert len(kernel.ordinary) == 6 and not kernel.quick, "a Triton that nobody tried this with"
