"""The rule that decides whether a speed-up may be printed."""

import pytest
import torch

from zamba_lm.eval.bench.agree import COMPARABLE, LIMITS, error, judge, regret, relative, unknown


def test_equal_sides_agree():
    found = judge("bfloat16", "float64", (0.05, 0.05), (0.01, 0.02))
    assert found.ok and found.reason == "" and (found.ours, found.theirs) == (0.05, 0.05)


@pytest.mark.parametrize(
    ("errors", "regrets", "gradients", "said"),
    [
        ((0.3, 0.05), (0, 0), None, "our logits are off by 0.3"),
        ((0.05, 0.3), (0, 0), None, "their logits are off by 0.3"),
        ((float("inf"), 0.05), (0, 0), None, "our logits"),
        ((float("nan"), 0.05), (0, 0), None, "our logits"),
        ((0.06, 0.05), (0, 0), None, "theirs by 0.05"),
        ((0.05, 0.05), (2.0, 0), None, "our greedy tokens lie 2 spreads"),
        ((0.05, 0.05), (0, 2.0), None, "their greedy tokens"),
        ((0.05, 0.05), (0, 0), (0.6, 0.1), "our gradients are off by 0.6"),
        ((0.05, 0.05), (0, 0), (0.1, 0.6), "their gradients"),
        ((0.05, 0.05), (0, 0), (0.2, 0.1), "our gradients are off by 0.2, theirs by 0.1"),
    ],
)
def test_a_side_that_is_off_is_named(errors, regrets, gradients, said):
    found = judge("bfloat16", "float64", errors, regrets, gradients)
    assert not found.ok and said in found.reason


def test_rounding_of_float32_is_no_disagreement():
    assert judge("float32", "float64", (9e-7, 2e-7)).ok
    assert not judge("float32", "float64", (9e-4, 2e-7)).ok and 9e-4 < LIMITS["float32"]


def test_ours_may_be_better_by_far():
    assert judge("bfloat16", "float64", (0.001, 0.2)).ok
    assert judge("bfloat16", "float64", (0.05 * COMPARABLE * 0.999, 0.05)).ok


def test_error_is_a_share_of_the_spread():
    exact = torch.randn(50, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 7
    assert error(exact, exact) == 0
    assert error(exact + 0.7, exact) == pytest.approx(0.1, rel=0.02)
    assert error(torch.full_like(exact, torch.nan), exact) == float("inf")


def test_regret_is_what_the_worst_choice_loses():
    exact = torch.tensor([[0.0, 4.0, 1.0], [2.0, 0.0, 1.0]])
    assert regret(torch.tensor([1, 0]), exact) == 0
    assert regret(torch.tensor([1, 2]), exact) == pytest.approx(1 / exact.std().item())


def test_relative_takes_several_tensors_as_one():
    exact = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert relative(exact, exact) == 0
    assert relative([torch.tensor([3.0]), torch.tensor([[3.0]])], exact) == pytest.approx(0.2)
    assert relative([torch.tensor([torch.nan]), torch.tensor([[4.0]])], exact) == float("inf")


def test_nothing_compared_is_no_agreement():
    assert not unknown("no room").ok and unknown("no room").reason == "no room"


def test_several_texts_tell_how_sure_a_difference_is():
    found = judge("bfloat16", "float64", ([0.03, 0.05], [0.04, 0.04]))
    assert found.ours == pytest.approx((0.0034 / 2) ** 0.5) and found.theirs == pytest.approx(0.04)
    assert found.texts == 2 and found.doubt == pytest.approx(0.01)
    assert judge("bfloat16", "float64", (0.03, 0.04)).doubt is None
