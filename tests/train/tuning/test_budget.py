"""What fits where: the memory of adapters over Zamba2-2.7B, by arithmetic."""

from dataclasses import replace

import pytest

from zamba_lm.errors import ZambaError
from zamba_lm.model.presets import PRESETS
from zamba_lm.train.recipes import lora_sft
from zamba_lm.train.tuning.budget import Kind, at_once, fixed, numbers
from zamba_lm.train.tuning.lora import Lora

SHAPE, GIB = PRESETS["zamba2-2.7b"], 2**30
LORA, QLORA = Kind(Lora(), nf4=False), Kind(Lora(), nf4=True)


def rows(kind, memory_gib, **batch):
    config = lora_sft.Config()
    config = replace(config, run=replace(config.run, memory_gib=memory_gib), batch=replace(config.batch, **batch))
    return at_once(config, SHAPE, kind, row=4096, rows=16, unit="rows")


def test_frozen_weights_and_adapters():
    frozen, trained = numbers(SHAPE, Lora())
    assert frozen > 0.95 * SHAPE.n_params() and trained == 24_014_336
    assert numbers(SHAPE, Lora(rank=32))[1] == 2 * trained
    assert 5 * GIB < fixed(SHAPE, LORA, bf16=True) < 5.5 * GIB  # measured: 5.4
    assert 1.6 * GIB < fixed(SHAPE, QLORA, bf16=True) < 2 * GIB


def test_sixteen_gigabytes_take_adapters_and_eight_take_them_over_four_bits():
    assert rows(LORA, 16e9 / GIB) >= 1
    assert rows(QLORA, 8e9 / GIB) == 2
    assert rows(QLORA, 80) == 16 > rows(LORA, 16e9 / GIB)


def test_what_does_not_fit_says_what_would():
    with pytest.raises(ZambaError, match=r"1 of 4096 tokens .* need about \d+\.\d GiB of 8.0 GiB; nothing fits: .* qlora-sft"):
        rows(LORA, 8)
    with pytest.raises(ZambaError, match=r"what fits: --set batch.micro=4"):
        rows(LORA, 16, micro=8)
    with pytest.raises(ZambaError, match="try --set batch.recompute=layers"):
        rows(LORA, 16, recompute="none")
    with pytest.raises(ZambaError, match="batch.micro is 3, but a device's 16 rows of a step do not divide by it"):
        rows(LORA, 80, micro=3)
