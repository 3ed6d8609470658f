"""Kernels in Gluon have no interpreter: without a GPU all that can be said is that they compile for Hopper and fit it. What they
compute is held in tests/gpu."""

import json
import os
import subprocess
import sys

import pytest

from zamba_lm.ops.linear.triton.configs import streams_config

pytest.importorskip("triton.experimental.gluon")
SHARED = 227 << 10  # bytes that a program may have on Hopper


def test_kernels_in_gluon_compile_for_hopper():
    command = [sys.executable, "-m", "tests.ops.gluon_compiled"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "0"}, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = json.loads(done.stdout.splitlines()[-1])
    assert len(sizes) == 20 and all(0 < size <= SHARED for size in sizes.values()), sizes


@pytest.mark.parametrize("rows", [750, 8192, 10240, 14848])
@pytest.mark.parametrize("width", [1024, 2048, 3712])
def test_a_gate_sees_whole_sums(rows, width):
    """gelu(a + b) is not gelu(a) + gelu(b): columns are shared out among programs only where nothing follows but a sum."""
    assert streams_config(rows, width, 8, True, 132).splits == 1
    assert streams_config(1024, width, 8, False, 132).splits > 1
