"""Kernels compiled ahead: by a program and its forks, and by threads where those cannot."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.ops.test_gpu import CUDA, Jit, one_gpu  # noqa: F401  # a fixture
from zamba_lm.ops import ahead, forks, gpu


class Mode:
    """What ``compiling`` uses of Triton: a mode in which kernels that are asked for go to an executor."""

    now = None

    def __init__(self, executor, *, ignore_errors):
        self.executor, self.futures = executor, []
        assert ignore_errors

    def __enter__(self):
        Mode.now = self

    def __exit__(self, *error):
        assert all(future.done() for future in self.futures), "on the way out all are there"

    def submit(self, key, compile_fn, finalize_fn):
        self.futures.append(self.executor.submit(compile_fn))


class Warm(Jit):
    """A kernel that can be asked for."""

    cache_key = "its hash"

    def __init__(self, fails=False):
        super().__init__()
        self.asked, self.made, self.fails = [], [], fails

    def warmup(self, *args, grid, **options):
        def compile():
            if self.fails:
                raise ValueError("no such layout")
            return self

        self.asked.append(args)
        if hear := TRITON.knobs.runtime.jit_cache_hook:
            about = SimpleNamespace(module="room.kernels", name="warm", jit_function=self)
            hear(key="", repr="", fn=about, compile={"specialization_data": f"for {args[1]}"}, is_manual_warmup=True)
        Mode.now.submit(f"key {args[1]}", compile, None)

    @property
    def run(self):
        self.made.append("launcher")


TRITON = SimpleNamespace(
    AsyncCompileMode=Mode, __version__="3.6.0", knobs=SimpleNamespace(runtime=SimpleNamespace(jit_cache_hook=None))
)
PARTS = {"triton": TRITON, "triton.runtime.cache": SimpleNamespace(triton_key=lambda: "Triton's hash")}


class Program:
    """Stands for the process that compiles."""

    started: list = []

    def __init__(self, command, **pipes):
        self.command, self.stdin, self.waited = command, BytesIO(), False
        Program.started.append(self)

    def communicate(self):
        self.waited = True

    @property
    def lines(self):
        return [json.loads(line) for line in self.stdin.getvalue().splitlines()]


@pytest.fixture
def pretended(one_gpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    real = gpu.import_module
    for module in (gpu, ahead):
        monkeypatch.setattr(module, "import_module", lambda name: PARTS[name] if name in PARTS else real(name))
    monkeypatch.setattr(ahead.subprocess, "Popen", Program)
    monkeypatch.setattr(gpu, "capability", lambda device: (9, 0))
    monkeypatch.setattr(ahead, "cores", lambda: 6)
    monkeypatch.setattr(ahead, "cached", lambda key, name: False)
    monkeypatch.setattr(Program, "started", [])


def ask(*kernels, numbers=(3, 5, 32)):
    """Have them compiled for each number. Triton compiles for multiples of 16, and for the others."""
    x = torch.zeros(4)
    with ahead.compiling(CUDA):
        for kernel in kernels:
            for n in numbers:
                gpu.launch(kernel, (2,), x, n, device=CUDA, BLOCK=8, WIDE=True)
            assert not kernel.made, "nothing is compiled here while more is asked for"


def test_kernels_are_compiled_side_by_side_and_none_is_launched(pretended):
    good, bad = Warm(), Warm(fails=True)
    ask(good, bad)
    assert [args[1] for args in good.asked] == [3, 32] and good.made == ["launcher"] * 2
    assert not good.ordinary and not bad.ordinary, "nothing was launched"
    gpu.launch(bad, (2,), torch.zeros(4), 3, device=CUDA, BLOCK=8, WIDE=True)
    assert len(bad.ordinary) == 1, "outside, kernels are launched, and one that failed has its say"


def test_a_program_is_told_of_each_kernel_once(pretended):
    ask(Warm(), Warm())
    (program,) = Program.started
    assert program.command[0] == sys.executable and program.command[-1].endswith("forks.py") and program.waited
    assert program.lines[0] == {"path": sys.path, "triton": "Triton's hash", "since": gpu.SINCE, "arch": 90, "cores": 6}
    assert program.lines[1:] == [["room.kernels", "warm", "its hash", f"for {n}"] for n in (3, 32)]
    assert TRITON.knobs.runtime.jit_cache_hook is None, "nobody listens any more"


@pytest.mark.parametrize("why", ["all is there", "one core", "turned off", "another Triton", "no forks"])
def test_no_program_is_started(pretended, monkeypatch, why):
    if why == "all is there":
        monkeypatch.setattr(ahead, "cached", lambda key, name: True)
    elif why == "one core":
        monkeypatch.setattr(ahead, "cores", lambda: 1)
    elif why == "turned off":
        monkeypatch.setattr(ahead, "FORKS", 0)
    elif why == "another Triton":
        monkeypatch.setattr(gpu, "known_triton", lambda: False)
    else:
        monkeypatch.delattr(os, "fork")
    kernel = Warm()
    ask(kernel)
    assert not Program.started and kernel.made == ["launcher"] * len(kernel.asked)


def test_a_program_that_ends_early_harms_nothing(pretended, monkeypatch):
    class Broken(BytesIO):
        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(
        ahead.subprocess, "Popen", lambda *args, **pipes: SimpleNamespace(stdin=Broken(), communicate=lambda: None)
    )
    kernel = Warm()
    ask(kernel)
    assert kernel.made == ["launcher"] * 2


def test_who_loses_patience_leaves_no_one_waiting(pretended, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Program, "communicate", interrupted)
    kernel = Warm()
    with pytest.raises(KeyboardInterrupt):
        ask(kernel)
    assert kernel.made == ["launcher"] * 2 and TRITON.knobs.runtime.jit_cache_hook is None


def test_what_cannot_be_asked_for_is_left_to_its_launch(pretended, monkeypatch):
    def warmup(*args, **options):
        raise TypeError("not serializable")

    kernel = Warm()
    monkeypatch.setattr(kernel, "warmup", warmup)
    ask(kernel)
    assert not kernel.made and not Program.started


def test_files_changed_since_are_noticed():
    assert forks.unchanged(time.time() + 60) and not forks.unchanged(0.0)


def test_kernels_can_be_imported_where_torch_is_but_a_name():
    pytest.importorskip("triton")
    rooms = Path(ahead.__file__).parent
    files = [file.relative_to(rooms).with_suffix("") for file in rooms.rglob("*.py") if "triton" in str(file)]
    modules = [".".join(("zamba_lm.ops", *file.parts)).removesuffix(".__init__") for file in files]
    code = """
import json, sys
from zamba_lm.ops import forks
forks.begin({"path": sys.path, "arch": 90, "triton": ""})
for name in json.loads(sys.argv[1]):
    forks.import_module(name)
sys.exit(hasattr(sys.modules["torch"], "__version__"))
"""
    done = subprocess.run([sys.executable, "-c", code, json.dumps(modules)], capture_output=True, text=True)
    assert done.returncode == 0 and len(modules) > 50, done.stderr[-2000:]


def test_forks_compile_what_this_process_then_finds(tmp_path):
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.ops.ahead_compiled"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["programs"] == [True, False], "one where the cache was empty, none where it was not"
    assert sorted(map(tuple, told["found"])) == sorted([("argmax_kernel", True), ("best_part_kernel", True)] * 2)
