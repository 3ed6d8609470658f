"""What holds for every test: one torch thread a worker, the same random examples each time, no network."""

import os
import signal
import socket
import sys
from importlib import import_module
from importlib.util import find_spec

# Workers run side by side and the models are tiny, so everything keeps to one thread, and so does every process a test
# starts. torch reads these on import.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# Without a GPU, Triton's interpreter runs the kernels on CPU tensors. Triton reads this when a kernel is defined.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton"):
        import_module("tests.interpreter").hurry()

# A red test must be red again for whoever looks, and a slow machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A job that a shell put in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Minutes of real processes, in few tests. They come first, so that the end of a run is small tests that all workers can share.
LONG = ("tests/train/scale/", "tests/train/trainer/test_processes.py", "tests/parallel/", "tests/docs/test_readme.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches for the network fails as on a machine without one; servers on this machine are fine."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def connect_here(self, address):
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            raise OSError(f"tests have no network, and this one reached for {address[0]}")
        return connect(self, address)

    def resolve_here(host, *args, **kwargs):
        if host not in (*LOOPBACK, None):
            raise socket.gaierror(socket.EAI_FAIL, f"tests have no network, and this one asked where {host} is")
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)


@pytest.fixture(autouse=True)
def nothing_stays_interpreted():
    """A test that leaves the interpreter on makes kernels of whatever runs behind it."""
    yield
    module = sys.modules.get("zamba_lm.ops.gpu")
    OPS = getattr(sys.modules.get("zamba_lm.ops.dispatch"), "OPS", {})
    if module is not None and not torch.cuda.is_available():
        assert not module._interpreting, "kernels are still interpreted"
        left = [op.name for op in OPS.values() if any(choice.name == "triton" for choice in op._chosen.values())]
        assert not left, f"kernels still run for {left}"
