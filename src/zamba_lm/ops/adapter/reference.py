"""The adapter as its definition."""

from zamba_lm.ops.linear import linear


def adapter_reference(y_TO, x_TI, A_RI, B_OR):
    return y_TO + linear(linear(x_TI, A_RI), B_OR)
