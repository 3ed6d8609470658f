"""ZambaConfig: what it refuses, and what it derives."""

from dataclasses import replace
from math import inf, nan

import pytest

from tests.model.tiny_weights import ONE_BLOCK, TWO_BLOCKS, ZAMBA
from zamba_lm.errors import ZambaError
from zamba_lm.model.schedule import schedule


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        (ONE_BLOCK, {"family": "mamba"}, "family 'mamba'"),
        (ONE_BLOCK, {"d_model": 0}, "d_model is 0"),
        (ONE_BLOCK, {"n_layers": 2.0}, "n_layers is 2.0"),
        (ONE_BLOCK, {"n_layers": True}, "n_layers is True"),
        (ONE_BLOCK, {"n_layers": 10**9}, "at most 10000"),
        (ONE_BLOCK, {"d_conv": 1}, "d_conv is 1"),
        (ONE_BLOCK, {"n_ssm_heads": 5}, "48 is not a multiple of n_ssm_heads 5"),
        (ONE_BLOCK, {"n_groups": 3}, "n_ssm_heads 4 is not a multiple of n_groups 3"),
        (ONE_BLOCK, {"n_heads": 5}, "48 is not a multiple of n_heads 5"),
        (ONE_BLOCK, {"hybrid_layers": (2, 0)}, "must ascend"),
        (ONE_BLOCK, {"hybrid_layers": (0, 4)}, "within the 4 layers"),
        (ONE_BLOCK, {"n_blocks": 3}, "3 shared blocks but only 2"),
        (ONE_BLOCK, {"adapter_rank": 0}, "adapter_rank is 0 with attention_adapters=True"),
        (ONE_BLOCK, {"rope_theta": -1.0}, "rope_theta is -1.0"),
        (ONE_BLOCK, {"n_heads": 24, "rope_theta": 1e4}, "head_dim is 2"),
        (TWO_BLOCKS, {"long_context": True}, "rope_theta is 0"),
        (ONE_BLOCK, {"max_positions": 0}, "max_positions is 0"),
        (ONE_BLOCK, {"norm_eps": nan}, "norm_eps is nan"),
        (ONE_BLOCK, {"init_std": -0.1}, "init_std is -0.1"),
        (ONE_BLOCK, {"dt_min": 0.2}, "dt_min"),
        (ONE_BLOCK, {"dt_limit": (inf, inf)}, "dt_limit"),
        (ONE_BLOCK, {"dt_limit": 3}, "dt_limit is 3, expected two numbers"),
        (ONE_BLOCK, {"hybrid_layers": (0, "a")}, "hybrid_layers is (0, 'a'), expected a list of whole numbers"),
        (ONE_BLOCK, {"rope_theta": "x"}, "rope_theta is 'x', expected a number"),
        (ONE_BLOCK, {"long_context": "no"}, "long_context is 'no', expected true or false"),
        (ONE_BLOCK, {"eos_id": "2"}, "eos_id is '2', expected a token id"),
        (ONE_BLOCK, {"dtype": "int8"}, "dtype is 'int8'"),
        (ONE_BLOCK, {"bos_id": 61}, "bos_id is 61"),
        (ONE_BLOCK, {"eos_id": (2, 99)}, "eos_id 99"),
        (ZAMBA, {"dt_rank": 0}, "dt_rank is 0"),
        (ZAMBA, {"n_groups": 2}, "n_groups is 2"),
    ],
)
def test_impossible_shapes_are_refused_in_words(config, change, words):
    with pytest.raises(ZambaError, match="impossible") as caught:
        replace(config, **change)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_derived_shapes():
    c = TWO_BLOCKS
    assert (c.d_inner, c.ssm_head_dim, c.conv_dim, c.d_attn, c.head_dim) == (48, 12, 48 + 2 * 2 * 6, 48, 12)
    assert ZAMBA.conv_dim == 48 and c.attn_scale == (12 / 2) ** -0.5
    assert c.eos_ids == (2,) and replace(c, eos_id=None).eos_ids == () and replace(c, eos_id=(1, 2)).eos_ids == (1, 2)


def test_rope_base_is_rescaled_for_long_contexts_only():
    assert ONE_BLOCK.rope_base == 10_000
    assert replace(ONE_BLOCK, long_context=True).rope_base == pytest.approx(10_000 * 8 ** (12 / 10))


def test_blocks_alternate_by_call_and_not_by_layer():
    plans = schedule(TWO_BLOCKS)
    assert [(plan.layer, plan.call, plan.block) for plan in plans if plan.hybrid] == [(1, 0, 0), (2, 1, 1), (4, 2, 0), (5, 3, 1)]
    assert [plan.layer for plan in plans] == list(range(6))
