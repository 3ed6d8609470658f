"""The published models by name."""

import pytest

from zamba_lm.errors import ZambaError
from zamba_lm.hub import EMBEDDED, REPOSITORIES
from zamba_lm.model.presets import PRESETS, preset


def test_every_preset_can_be_fetched_under_its_name():
    assert set(PRESETS) <= set(REPOSITORIES) and EMBEDDED not in PRESETS


@pytest.mark.parametrize(
    ("name", "head_dim", "calls"), [("zamba-7b-v1", 464, 13), ("zamba2-1.2b", 128, 6), ("zamba2-2.7b", 160, 9)]
)
def test_shapes(name, head_dim, calls):
    config = preset(name)
    assert (config.head_dim, config.n_calls, config.vocab_size, config.dtype) == (head_dim, calls, 32000, "bfloat16")


def test_hybrid_layers_as_published():
    assert preset("zamba-7b-v1").hybrid_layers == (2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73)
    assert preset("zamba2-7b").hybrid_layers == (6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77)


def test_only_the_7b_instruct_is_made_for_long_contexts():
    long = preset("Zamba2-7B-Instruct")
    assert long.long_context and long.max_positions == 16384 and long.rope_base == pytest.approx(10_000 * 8 ** (224 / 222))
    assert not any(config.long_context for name, config in PRESETS.items() if name != "zamba2-7b-instruct")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ZambaError, match=r"unknown preset 'zamba2-2.7' \(did you mean zamba2-2.7b\?\)"):
        preset("zamba2-2.7")
