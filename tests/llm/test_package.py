"""The names of the package: lazy, listed, and exactly these."""

import subprocess
import sys

import pytest

import zamba_lm

NAMES = {
    "load_model",
    "load_tokenizer",
    "LLM",
    "SamplingParams",
    "Completion",
    "Zamba",
    "ZambaConfig",
    "ZambaError",
    "__version__",
}


def test_names_are_listed_and_there():
    assert set(zamba_lm.__all__) == set(dir(zamba_lm)) == NAMES
    assert all(getattr(zamba_lm, name) is not None for name in NAMES)
    assert zamba_lm.__version__.count(".") == 2


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="LMM"):
        _ = zamba_lm.LMM


def test_cheap_names_import_no_torch():
    code = (
        "import sys, zamba_lm; zamba_lm.ZambaError, zamba_lm.SamplingParams, zamba_lm.__version__; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
