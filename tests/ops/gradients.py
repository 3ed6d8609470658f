"""Gradients of an op beside those of its definition."""

import torch

from tests.numerics.tolerances import assert_within


def gradients(function, inputs, seed=0, rounded=None):
    """Gradients of all ``inputs`` of a random weighting of all outputs, the weights rounded to the outputs' dtypes or, where two
    functions of different dtypes are to get the same ones, to ``rounded``."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    outputs = function(**leaves)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(y.shape, generator=generator).to(rounded or y.dtype).to(y) for y in outputs]
    torch.autograd.backward(outputs, weights)
    return {name: leaf.grad for name, leaf in leaves.items()}


def assert_gradients(function, oracle, inputs):
    """Every input's gradient through ``function`` is that through ``oracle`` in float64, and none is trivially zero."""
    actual = gradients(function, inputs)
    expected = gradients(oracle, {name: value.double() for name, value in inputs.items()})
    for name in inputs:
        assert expected[name].abs().max() > 1e-3, f"the test does not exercise {name}"
        assert actual[name].dtype == inputs[name].dtype
        assert_within("gradient", actual[name], expected[name])
