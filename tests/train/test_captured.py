"""What can be said of a captured pass without a GPU; the rest is in tests/gpu/test_train_cuda.py."""

import pytest
import torch

from tests.train.tiny import TINY
from zamba_lm.errors import ZambaError
from zamba_lm.model.zamba import Zamba
from zamba_lm.train.captured import Captured


def test_a_model_on_a_cpu_is_refused():
    with pytest.raises(ZambaError, match="captured on a GPU, but the model is on cpu"):
        Captured(Zamba(TINY, dtype=torch.float32), (4,))
