"""A low-rank correction added to a projection's output."""

from zamba_lm.ops.adapter.reference import adapter_reference
from zamba_lm.ops.dispatch import Implementation, Op

ADAPTER = Op("adapter", (Implementation("reference", adapter_reference),))


def adapter(y_TO, x_TI, A_RI, B_OR, A_scale_R=None, B_scale_O=None):
    """y + B (A x): no scaling, no bias. Returns (T, O) in y's dtype. Source: Zamba2 (arXiv 2411.15242), section 2.

    A and B may be packed (see ``ops.linear``); their row scales come with them.
    """
    return ADAPTER(x_TI.device)(y_TO, x_TI, A_RI, B_OR, A_scale_R, B_scale_O)
