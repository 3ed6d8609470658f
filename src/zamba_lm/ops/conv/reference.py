"""The convolution as its definition: K shifted copies, weighted and added."""

from functools import partial

import torch
import torch.nn.functional as F

from zamba_lm.ops.packing import Packing, entries, over_runs, put_back


def conv_reference(x_TC, weight_CK, bias_C, packing: Packing, window_SKC=None, slots_S=None, in_place=False):
    before_SKC = entries(window_SKC, slots_S)
    y_TC, after_SKC = over_runs(packing, partial(_rows, weight_CK.float(), bias_C.float()), (x_TC,), (before_SKC,))
    return y_TC, put_back(window_SKC, after_SKC, slots_S) if in_place else after_SKC


def _rows(weight_CK, bias_C, x_BTC, window_BKC):
    B, T, C = x_BTC.shape
    past = weight_CK.shape[1] - 1
    if window_BKC is None:
        window_BKC = x_BTC.new_zeros(B, past, C)
    longer_BTC = torch.cat([window_BKC.to(x_BTC.dtype), x_BTC], dim=1)
    taps_KC = weight_CK.T.contiguous()  # as channels lie in x, or every product would gather its weights
    if T == 1:
        y_BTC = (longer_BTC * taps_KC).sum(1, keepdim=True) + bias_C
    else:
        wide_BTC, y_BTC = longer_BTC.float(), bias_C
        for k in range(past + 1):  # tap k looks back past - k tokens
            y_BTC = torch.addcmul(y_BTC, wide_BTC[:, k : k + T], taps_KC[k])
    return F.silu(y_BTC).to(x_BTC.dtype), longer_BTC[:, T:]
