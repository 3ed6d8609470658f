"""The yardstick itself: it lets pass what it says and nothing more."""

import pytest
import torch

from tests.numerics.tolerances import TOLERANCES, assert_within


@pytest.mark.parametrize(("case", "dtype"), TOLERANCES)
def test_the_table_is_the_border(case, dtype):
    absolute, relative = TOLERANCES[case, dtype]
    expected = torch.linspace(-3, 3, 61, dtype=torch.float64)
    allowed = absolute + relative * expected.abs()
    assert_within(case, expected + 0.99 * allowed, expected, dtype=dtype)
    with pytest.raises(AssertionError, match="largest difference"):
        assert_within(case, expected - 1.01 * allowed, expected, dtype=dtype)


def test_one_bad_element_among_many_is_seen():
    expected = torch.zeros(1000)
    actual = expected.clone()
    actual[617] = torch.nan
    with pytest.raises(AssertionError, match="nan"):
        assert_within("parity", actual, expected)


def test_broadcasting_hides_nothing():
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_within("parity", torch.zeros(3, 1), torch.zeros(3))
