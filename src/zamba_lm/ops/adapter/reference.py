"""The adapter as its definition."""

from zamba_lm.ops.linear import linear


def adapter_reference(y_TO, x_TI, A_RI, B_OR, A_scale_R=None, B_scale_O=None):
    return linear(linear(x_TI, A_RI, A_scale_R), B_OR, B_scale_O, residual_TO=y_TO)
