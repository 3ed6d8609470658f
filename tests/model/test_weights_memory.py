"""Loading holds the model and little else: measured as the process's peak, not as what Python believes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.model.tiny_weights import ONE_BLOCK, saved

ROOT = Path(__file__).parents[2]
CONFIG = replace(ONE_BLOCK, vocab_size=20_000, d_model=384, n_layers=6, hybrid_layers=(1, 3), n_ssm_heads=8, n_heads=8, d_ff=1024)
MEASURE = """
import re, sys
from pathlib import Path
import torch
from zamba_lm.model.load import load_model

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
model = load_model(sys.argv[1], device="cpu", dtype=sys.argv[2])
print(status("VmHWM") - before)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the kernel's own figures")


@pytest.fixture(scope="module", params=[8_000_000, 5_000_000_000], ids=["shards", "one file"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    saved(folder, CONFIG, max_shard_bytes=request.param)
    return folder


def peak(folder, dtype):
    command = [sys.executable, "-c", MEASURE, str(folder), dtype]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_in_the_dtype_of_the_file_the_peak_is_the_model(folder):
    assert peak(folder, "float32") < 1.15 * CONFIG.weight_bytes("float32")


def test_in_another_dtype_the_peak_is_far_below_model_and_file(folder):
    """A few tensors at a time are in memory twice; a shard of a published model is larger than they are together."""
    assert peak(folder, "bfloat16") < CONFIG.weight_bytes("bfloat16") + 0.95 * CONFIG.weight_bytes("float32")
