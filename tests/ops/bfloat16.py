"""Triton 3.6's interpreter keeps bfloat16 as its bits and multiplies those: give its products the numbers."""

from copy import copy

import numpy as np
import pytest


@pytest.fixture
def bfloat16_products(monkeypatch):
    builder = pytest.importorskip("triton.runtime.interpreter").InterpreterBuilder
    create_dot = builder.create_dot

    def numbers(v):
        if v.dtype.scalar.name == "bf16":
            v = copy(v)
            v.data = (v.data.astype(np.uint32) << 16).view(np.float32)
        return v

    monkeypatch.setattr(builder, "create_dot", lambda self, a, b, *rest: create_dot(self, numbers(a), numbers(b), *rest))
