"""Two processes that talk through gloo: the engine on a split model, loading, and what is refused. Started once for all tests."""

import pytest
import torch
import torch.multiprocessing as processes

from tests.parallel import worker
from zamba_lm.errors import ZambaError
from zamba_lm.parallel import join
from zamba_lm.parallel.direct import BLOCK, ROWS, SLOT

SIZE = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    words = 2 * SIZE * ROWS * -(-max(worker.WIDTHS) // BLOCK) * SLOT
    inboxes = [torch.zeros(words, dtype=torch.int64).share_memory_() for _ in range(SIZE)]
    processes.spawn(worker.main, (SIZE, str(folder), inboxes), nprocs=SIZE)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


def test_ranks_know_their_place(found):
    assert [one["rank"] for one in found] == [(rank, SIZE, "cpu") for rank in range(SIZE)]


@pytest.mark.parametrize("family", ["zamba2", "zamba"])
def test_the_engine_answers_as_with_one_device(found, family):
    for one in found:
        expected, by_pass, by_row, _ = one["engine"][family]
        assert by_pass == expected and by_row == expected


@pytest.mark.parametrize("family", ["zamba2", "zamba"])
def test_ranks_have_the_same_bits(found, family):
    assert torch.equal(*(one["engine"][family][-1] for one in found))


def test_requests_without_a_seed_draw_the_same(found):
    assert found[0]["free"] == found[1]["free"]
    assert len(set(found[0]["free"])) == 3


def test_a_checkpoint_is_loaded_share_by_share(found):
    for one in found:
        assert one["loaded"] == (True, torch.bfloat16, 99)


def test_summing_in_each_others_memory(found):
    for one in found:
        assert max(one["direct"]) <= 0


def test_what_cannot_be_says_why(found):
    for one in found:
        assert "1 SSM heads do not divide by 2" in one["refused"]["heads"]
        assert "does not belong to the group" in one["refused"]["group"]
        if not torch.cuda.is_available():
            assert "asks for GPUs" in one["refused"]["device"]


def test_without_torchrun_one_line_says_so(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ZambaError, match="start it with 'torchrun"):
        join("cpu")
