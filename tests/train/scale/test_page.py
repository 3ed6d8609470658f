"""docs/scale.md holds the tables that its tool prints, and the arithmetic is what the page says."""

import importlib.util
from pathlib import Path

import pytest

from zamba_lm.model.presets import PRESETS
from zamba_lm.train.trainer import plan

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("plan_scale", ROOT / "tools" / "plan_scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_what_the_tool_prints(tool):
    page = (ROOT / "docs" / "scale.md").read_text()
    assert tool.BEGIN in page and tool.written(page) == page, "run: python tools/plan_scale.py --write"


def test_two_gpus_come_out_as_they_were_measured(tool):
    """The only step of several GPUs that was measured, by the formula of all others."""
    c = PRESETS[tool.LIKE]
    seconds, _ = tool.exchange_time(c, 2, 1)
    made = 4 * tool.row_time(c, "H200") + tool.beside(seconds) + tool.ends(c, 2, tool.NVLINK) + tool.REST_TIME / 2
    assert made == pytest.approx(tool.TWO_FOUR_ROWS, rel=1e-6)


def test_bytes_that_travel(tool):
    """2.7 B in 8 pieces: 7/8 of bfloat16 layers twice, blocks once, the embedding in float32, gradients in float32."""
    c = PRESETS["zamba2-2.7b"]
    embedding, blocks = 32000 * 2560, 2 * c.block_params()
    layers = c.n_params() - embedding - blocks
    expected = (2 * 2 * 3 * layers + 2 * blocks + 4 * embedding + 3 * 4 * c.n_params()) * 7 / 8
    assert tool.exchange_time(c, 8, 3)[1] == pytest.approx(expected, rel=1e-9)
    assert tool.between(c, 8, 4, 1)[1] == pytest.approx(2 * 4 * c.n_params() / 8 * 3 / 4, rel=1e-9)


def test_what_fits_is_chosen(tool):
    """No plan is over its GPU's memory, and more GPUs are faster."""
    for name in tool.SHAPES:
        for gpu, (memory, _) in tool.GPUS.items():
            steps = [tool.step(PRESETS[name], gpu, count) for count in tool.COUNTS]
            assert all(one.memory <= plan.SPARE * memory for one in steps)
            speeds = [one.tokens / one.seconds for one in steps]
            assert speeds == sorted(speeds)


def test_pieces_divide_what_training_keeps():
    c = PRESETS["zamba2-2.7b"]
    how = {"row": 4096, "micro": 1, "recompute": "none", "optimizer": "adamw", "bf16": True}
    whole, two, eight = (plan.memory(c, **how, pieces=pieces) for pieces in (1, 2, 8))
    assert two.weights == whole.weights // 2 and eight.moments == whole.moments // 8
    assert eight.activations == whole.activations and eight.products == two.products < whole.products
    # measured on two H200s: 34.2 GiB; the plan may say more, not less
    assert 34.2 < two.total / 2**30 < 1.3 * 34.2
    free, kept = (plan.memory(c, **how, pieces=8, keep=keep).products for keep in ("none", "all"))
    assert free < eight.products < kept
