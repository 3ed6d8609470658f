"""Which layer calls which block: by call, never by layer number, as in the published models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.tiny import ZAMBA2
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.presets import PRESETS
from zamba_lm.model.schedule import LayerPlan, schedule

# layer -> block, as the checkpoints have it
PUBLISHED = {
    "zamba-7b-v1": dict.fromkeys((2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73), 0),
    "zamba2-1.2b": dict.fromkeys((5, 11, 17, 23, 29, 35), 0),
    "zamba2-2.7b": {6: 0, 12: 1, 18: 0, 24: 1, 30: 0, 36: 1, 42: 0, 47: 1, 51: 0},
    "zamba2-7b": dict(zip((6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77), [0, 1] * 6 + [0], strict=True)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    plans = schedule(PRESETS[name])
    assert [plan.layer for plan in plans] == list(range(PRESETS[name].n_layers))
    assert {plan.layer: plan.block for plan in plans if plan.hybrid} == PUBLISHED[name]


def test_two_calls_at_the_same_parity_of_layer_still_alternate():
    config = ZambaConfig(**ZAMBA2 | {"n_layers": 7, "hybrid_layers": (0, 2, 4, 6)}, n_blocks=2)
    assert [plan.block for plan in schedule(config) if plan.hybrid] == [0, 1, 0, 1]


def test_a_plain_layer_has_no_call():
    plans = schedule(ZambaConfig(**ZAMBA2 | {"n_layers": 3, "hybrid_layers": (1,)}))
    assert plans == (LayerPlan(0), LayerPlan(1, call=0, block=0), LayerPlan(2))
    assert [plan.hybrid for plan in plans] == [False, True, False]


def test_no_calls_at_all():
    assert not any(plan.hybrid for plan in schedule(ZambaConfig(**ZAMBA2 | {"hybrid_layers": ()})))


@given(layers=st.sets(st.integers(0, 30), min_size=1).map(sorted), data=st.data())
def test_calls_count_up_and_blocks_go_round(layers, data):
    blocks = data.draw(st.integers(1, len(layers)))
    plans = schedule(ZambaConfig(**ZAMBA2 | {"n_layers": 31, "hybrid_layers": tuple(layers)}, n_blocks=blocks))
    hybrid = [plan for plan in plans if plan.hybrid]
    assert [plan.layer for plan in hybrid] == layers
    assert [plan.call for plan in hybrid] == list(range(len(layers)))
    assert [plan.block for plan in hybrid] == [call % blocks for call in range(len(layers))]
