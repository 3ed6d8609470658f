"""Small shapes for the benchmark's tests, as presets of their own."""

import pytest

from tests.model.tiny import CONFIGS
from zamba_lm.model import presets

PRESETS = {"tiny": CONFIGS["zamba2, everything"], "tiny-v1": CONFIGS["zamba"]}


@pytest.fixture
def tiny(monkeypatch):
    """Adds the presets ``tiny`` and ``tiny-v1``."""
    for name, config in PRESETS.items():
        monkeypatch.setitem(presets.PRESETS, name, config)
