"""A split model beside the whole one: the same logits by every route, the same bits on every rank, a share of the memory."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.model import tiny
from tests.numerics.tolerances import assert_within, excess
from tests.parallel.threads import together
from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.merge import merge_adapters
from zamba_lm.model.pack import freeze_constants
from zamba_lm.model.zamba import Zamba
from zamba_lm.parallel.load import random_parallel, tensor_parallel

EVERYTHING = tiny.CONFIGS["zamba2, everything"]  # two groups, two blocks, adapters everywhere, RoPE
CONFIGS = {
    "zamba": tiny.CONFIGS["zamba"],
    "zamba, short windows": replace(tiny.CONFIGS["zamba"], dt_rank=1, d_conv=2, d_state=1, hybrid_layers=(0, 1, 2)),
    "zamba2, one group": tiny.CONFIGS["zamba2, plain"],
    "zamba2, two groups": EVERYTHING,
    "zamba2, one group and everything": replace(EVERYTHING, n_groups=1, vocab_size=62),
    "zamba2, no calls": tiny.CONFIGS["zamba2, no calls"],
}
SPLITS = [(name, 2) for name in CONFIGS] + [(name, 4) for name in CONFIGS if name.startswith("zamba2")] + [("zamba", 1)]


@cache
def whole(name):
    return tiny.random_model(CONFIGS[name], seed=7)


def routes(model):
    """Logits of a few texts: whole, in pieces, token by token, packed."""
    ids, both = tiny.text(70)[None], tiny.random_ids(2, 5, seed=1)
    state, single = model.new_state(1), model.new_state(2)
    texts = Batch.pack([tiny.text(n).tolist() for n in (1, 2, 63, 64, 65)])
    return {
        "whole": model.logits(ids),
        "pieces": torch.cat([model.logits(part, state) for part in ids.split([33, 1, 1, 35], dim=1)], 1),
        "steps": torch.cat([model.logits(both[:, [t]], single) for t in range(5)], 1),
        "packed": model(texts),
        "last": model(texts, last_only=True),
    }


def check(expected, found):
    for route, logits in expected.items():
        for other in found:
            assert_within("paths", other[route], logits)
            assert torch.equal(other[route], found[0][route]), f"{route}: ranks differ"


@pytest.mark.parametrize(("name", "size"), SPLITS)
def test_a_split_model_says_what_the_whole_one_says(name, size):
    check(routes(whole(name)), together(size, lambda ranks: routes(tensor_parallel(whole(name), ranks=ranks))))


@pytest.mark.parametrize("before", [True, False], ids=["merged, then split", "split, then merged"])
def test_adapters_merged(before):
    def work(ranks):
        model = tiny.random_model(EVERYTHING, seed=7)
        if before:
            return routes(tensor_parallel(merge_adapters(model), ranks=ranks))
        return routes(merge_adapters(freeze_constants(tensor_parallel(model, ranks=ranks))))

    check(routes(whole("zamba2, two groups")), together(2, work))


@pytest.mark.parametrize("name", ["zamba", "zamba2, one group and everything"])
def test_bfloat16(name):
    """No further from float32 than twice what the whole model in bfloat16 is."""
    ids = tiny.text(70)[None]
    narrow = tiny.random_model(CONFIGS[name], seed=7, dtype=torch.bfloat16)
    found = together(2, lambda ranks: tensor_parallel(narrow, ranks=ranks).logits(ids))
    assert torch.equal(*found)
    exact = whole(name).logits(ids)
    error, usual = (((logits - exact).square().mean().sqrt() / exact.std()).item() for logits in (found[0], narrow.logits(ids)))
    assert error <= 2 * usual + 1e-3
    assert excess("paths", found[0], exact, dtype=torch.bfloat16) < 1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_rank_holds_its_share_of_state_and_weights(name):
    model = whole(name)

    def work(ranks):
        mine = tensor_parallel(model, ranks=ranks)
        state = mine.new_state(2)
        state.reserve((5, 5))
        return state, sum(p.nbytes for p in mine.parameters())

    state = model.new_state(2)
    state.reserve((5, 5))
    for mine, nbytes in together(2, work):
        assert mine.ssm.nbytes * 2 == state.ssm.nbytes
        assert [store.nbytes * 2 for store in mine.kv.stores] == [store.nbytes for store in state.kv.stores]
        assert mine.windows.shape[-1] * 2 >= state.windows.shape[-1]  # with one group, both ranks keep its maps
        assert nbytes < 0.7 * sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("name", ["zamba", "zamba2, one group and everything"])
def test_random_weights_are_those_of_one_device(name):
    drawn = Zamba(CONFIGS[name], dtype=torch.float32).init_weights(5)

    def work(ranks):
        pairs = zip(
            random_parallel(CONFIGS[name], 5, ranks=ranks, dtype=torch.float32).parameters(), expected(ranks), strict=True
        )
        return all(torch.equal(a, b) for a, b in pairs)

    def expected(ranks):
        return tensor_parallel(drawn, ranks=ranks).parameters()

    assert all(together(2, work))


def test_vectors_that_stay_float32():
    model = tiny.random_model(CONFIGS["zamba2, one group"], seed=7, dtype=torch.bfloat16)
    model.layers[0].mixer.A_log.data = model.layers[0].mixer.A_log.float()
    for mine in together(2, lambda ranks: tensor_parallel(model, ranks=ranks)):
        assert mine.layers[0].mixer.A_log.dtype == torch.float32 and mine.layers[1].mixer.A_log.dtype == torch.bfloat16


def test_what_a_split_model_refuses():
    model = whole("zamba2, one group")
    split = together(2, lambda ranks: tensor_parallel(model, ranks=ranks))[0]
    attempts = {
        "split over ranks already": lambda: tensor_parallel(split, ranks=split.ranks),
        "save the model before it is split": lambda: split.save("nowhere"),
        "draw its own weights": lambda: split.init_weights(),
        "call zamba_lm.parallel.join": lambda: tensor_parallel(model),
        "cannot write to each other from cpu": lambda: split.open_direct(),
    }
    for words, attempt in attempts.items():
        with pytest.raises(ZambaError, match=words):
            attempt()
