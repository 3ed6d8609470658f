"""What a step of decoding begins with, by the definition and by the kernel."""

import pytest
import torch

from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.opening import opening


@pytest.fixture(params=["reference", "triton"], autouse=True)
def way(request):
    if request.param == "reference":
        with force(opening="reference"):
            yield
    else:
        pytest.importorskip("triton")
        with interpreted(), force(opening="triton"):
            yield


@pytest.mark.parametrize("pages", [0, 1, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_gathered_and_grow(pages, dtype):
    g = torch.Generator().manual_seed(pages)
    ids, embedding = torch.tensor([6, -1, 2, 6]), torch.randn(7, 40, generator=g).to(dtype)
    table = torch.randint(0, 99, (5, pages + 3), generator=g, dtype=torch.int32)[:, :pages]
    slots, ages, grows = (torch.tensor(v, dtype=torch.int32) for v in ([4, 0, 4, 2], [0, 7, 512, 3], [1, 0, 1, 1]))
    x, found, past = opening(ids, embedding, table, slots, ages, grows)
    assert torch.equal(x, embedding[[6, 0, 2, 6]]) and torch.equal(found, table[[4, 0, 4, 2]])
    assert past.tolist() == [0, 7, 512, 3] and ages.tolist() == [1, 7, 513, 4]


def test_numbers_that_disagree_are_named():
    ids, small = torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"slots \(2,\).* do not fit 3 ids"):
        opening(ids, torch.zeros(4, 8), small[:, None], small, small, small)
