"""sample on a GPU: the checks of the interpreter at the published vocabulary, without waiting, inside a graph."""

import pytest
import torch

from tests.ops import sampling
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.sample import Settings, greedy, sample, uniform

pytestmark = pytest.mark.gpu

V = 32000


# A kernel is compiled for each size and dtype, which is what these tests take their time for.
@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [
        (23, torch.float32),
        (37, torch.float16),
        (1000, torch.bfloat16),
        (V, torch.float32),
        (V, torch.bfloat16),
        (131072, torch.float32),
    ],
)
def test_tokens_by_definition(vocab, dtype):
    with record() as ran:
        sampling.check_tokens(vocab, rows=32 if vocab <= V else 8, dtype=dtype, device="cuda")
    assert set(ran) == {("sample", "triton")}


@pytest.mark.parametrize("kind", [kind for kind, row in sampling.KINDS.items() if row.get("temperature")])
def test_draws_follow_the_distribution(kind):
    sampling.check_distribution(1000, kind, 20000, device="cuda")


@pytest.mark.parametrize("rows", [1, 7, 256])
def test_tokens_equal_those_of_the_cpu(rows):
    """A seed gives the same tokens on either device, where the logits agree."""
    made, x = sampling.settings(rows, device="cuda"), sampling.logits(rows, V)
    on_cpu, mine, theirs = Settings(made.words_n5.cpu()), sampling.poisoned(rows, "cuda"), sampling.poisoned(rows)
    different = 0
    for _ in range(4):
        sample(x.cuda(), made, mine)
        sample(x, on_cpu, theirs)
        different += (mine.cpu() != theirs).sum().item()
    assert different <= rows * 4 * 1e-3, "more than float32 borders explain"
    assert torch.equal(made.words_n5.cpu(), on_cpu.words_n5)


def test_a_row_does_not_depend_on_its_neighbours():
    sampling.check_neighbours(V, rows=24, device="cuda")


def test_settings_at_their_limits():
    sampling.check_limits(device="cuda")


@pytest.mark.parametrize("vocab", [37, V])
def test_logits_that_are_not_numbers(vocab):
    sampling.check_no_numbers(vocab, device="cuda")


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(2, torch.float32), (1000, torch.float16), (V + 1, torch.float32), (V, torch.bfloat16)]
)
@pytest.mark.parametrize("rows", [1, 9, 256])
def test_greedy(vocab, rows, dtype):
    sampling.check_greedy(vocab, rows=rows, dtype=dtype, device="cuda")


def test_nothing_waits_for_the_gpu():
    made, x, ids = sampling.settings(8, device="cuda"), sampling.logits(8, V, device="cuda"), sampling.poisoned(8, "cuda")
    seen = torch.zeros(8, V, dtype=torch.bool, device="cuda")
    sample(x, made, ids, seen)
    greedy(x, ids)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.put(3, temperature=1.0, seed=1)
        made.put_all([1, 2], [{"temperature": 1.0}] * 2)
        made.clear(1)
        sample(x, made, ids, seen)
        greedy(x, ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("implementation", ["triton", "reference"])
def test_replays_of_a_graph_draw_on_and_see_new_settings(implementation):
    rows = 4
    made, ids = Settings.empty(rows, "cuda"), sampling.poisoned(rows, "cuda")
    x, seen = sampling.logits(rows, V, device="cuda"), torch.zeros(rows, V, dtype=torch.bool, device="cuda")
    with force(sample=implementation):
        sample(x, made, ids, seen)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sample(x, made, ids, seen)
        for slot in range(rows):
            made.put(slot, temperature=1.5, seed=slot)
        for step in range(5):
            x.copy_(sampling.logits(rows, V, seed=step))
            graph.replay()
            for slot, token in enumerate(ids.tolist()):
                sampling.assert_right(token, x[slot], sampling.row_of(made, slot), uniform(slot, step), None)
    assert made.drawn.tolist() == [5] * rows and (seen.sum(-1) > 1).all()
