"""Who holds what: shares fit the local model, and together they are the whole."""

import pickle
from dataclasses import replace

import pytest
import torch

from tests.model import tiny
from zamba_lm.errors import ZambaError
from zamba_lm.model.names import parameter_shapes
from zamba_lm.model.presets import PRESETS
from zamba_lm.model.state import StateSpec
from zamba_lm.model.zamba import Zamba
from zamba_lm.parallel.shard import Shard, cut

EVERYTHING = tiny.CONFIGS["zamba2, everything"]
EVERYWHERE = ("embedding", "norm", "norm_in", "norm_mlp", "link", "A")  # what every rank has whole
SPLITS = [("zamba", 2), ("zamba2, plain", 2), ("zamba2, plain", 4), ("zamba2, everything", 2), ("zamba2, everything", 4)]


@pytest.mark.parametrize(("name", "size"), SPLITS)
def test_shares_fit_the_local_model_and_cover_the_whole(name, size):
    config = tiny.CONFIGS[name]
    held = {key: torch.zeros(shape) for key, shape in parameter_shapes(config).items()}
    for rank in range(size):
        shard = Shard(config, rank, size)
        local = {key: tuple(p.shape) for key, p in Zamba(shard, device="meta").named_parameters()}
        for key, shape in parameter_shapes(config).items():
            places = torch.arange(held[key].numel()).view(shape)
            mine = cut(key, places, shard)
            assert tuple(mine.shape) == local[key], key
            held[key].view(-1)[mine.flatten()] += 1
    for key, times in held.items():
        part = key.removesuffix(".weight").split(".")[-1]
        if part in EVERYWHERE:
            assert (times == size).all(), key
        elif part in ("in_proj", "conv_weight", "conv_bias"):  # B and C of a group, wherever its heads are
            assert times.min() == 1, key
        else:
            assert (times == 1).all(), key


def test_groups_go_with_the_heads_that_read_them():
    config = replace(EVERYTHING, n_ssm_heads=8)
    rows = torch.arange(2 * config.d_inner + 2 * config.n_groups * config.d_state + config.n_ssm_heads)
    starts = 2 * config.d_inner + torch.arange(config.n_groups) * config.d_state
    for size, groups in ((2, (0, 1)), (4, (0, 0, 1, 1))):
        for rank, group in enumerate(groups):
            shard = Shard(config, rank, size)
            assert (shard.n_groups, shard.span) == (1, size // 2)
            mine = cut("layers.0.mixer.in_proj.weight", rows, shard)
            maps = mine[2 * shard.d_inner : 2 * shard.d_inner + 2 * config.d_state]
            B = torch.arange(config.d_state) + starts[group]
            assert maps.tolist() == torch.cat([B, B + config.n_groups * config.d_state]).tolist()


@pytest.mark.parametrize("name", PRESETS)
def test_a_share_of_the_state_is_a_share(name):
    config = PRESETS[name]
    whole, local = StateSpec.of(config), StateSpec.of(Shard(config, 1, 2))
    assert local.ssm == (whole.ssm[0] // 2, *whole.ssm[1:])
    assert local.kv == (whole.kv[0] // 2, whole.kv[1])
    shard = Shard(config, 0, 2)
    assert shard.kv_bytes_per_token() * 2 == config.kv_bytes_per_token()
    assert shard.state_bytes() * 2 == config.state_bytes()
    assert pickle.loads(pickle.dumps(shard)) == shard


REFUSED = {
    "4 ranks: 2 SSM heads do not divide by 4, use at most 2 ranks": (PRESETS["zamba-7b-v1"], 4),
    "3 ranks: 80 SSM heads do not divide by 3": (PRESETS["zamba2-2.7b"], 3),
    "32 attention heads do not divide by 5": (PRESETS["zamba2-2.7b"], 5),
    "21 MLP columns do not divide by 2": (replace(EVERYTHING, d_ff=21), 2),
    "neither of 2 groups and 3 ranks is a multiple": (
        replace(EVERYTHING, n_ssm_heads=6, d_model=18, n_heads=6, d_ff=18, n_groups=2),
        3,
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_split_says_why(words):
    config, size = REFUSED[words]
    with pytest.raises(ZambaError, match=words):
        Shard(config, 0, size)
