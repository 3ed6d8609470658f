"""A model over two GPUs, through NCCL and by writing into each other's memory, with graphs: what one GPU answers."""

import pytest
import torch
import torch.multiprocessing as processes

from tests.parallel import cuda_worker

SIZE = 2
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < SIZE, reason=f"needs {SIZE} GPUs, there are {torch.cuda.device_count()}"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["nccl", "direct"])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes.spawn(cuda_worker.main, (SIZE, str(folder), request.param), nprocs=SIZE)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


@pytest.mark.parametrize("name", cuda_worker.CONFIGS)
def test_two_gpus_answer_as_one(found, name):
    cases = [one[name] for one in found]
    if isinstance(cases[0], str):
        pytest.skip(cases[0])
    for expected, actual, _, logits, split_logits in cases:
        assert actual == expected
        torch.testing.assert_close(split_logits, logits, rtol=1e-4, atol=1e-4)
    assert cases[0][2] == cases[1][2]
    assert torch.equal(cases[0][4], cases[1][4])
