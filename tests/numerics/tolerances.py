"""How far apart two answers may lie: one table, read by every test, relaxed by nothing.

An entry is (absolute, relative): |actual - expected| <= absolute + relative * |expected|, element by element. docs/numerics.md
says where the numbers come from. To loosen one is a decision to argue for in the commit; to add a row is ordinary work.
"""

import torch

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

TOLERANCES = {
    # logits of a small random model beside transformers' logits, dt clamp matched
    ("parity", F32): (2e-5, 0.0),
    # logits by two routes of our own: whole pass, chunks, single steps, packed, batched, saved and loaded
    ("paths", F32): (2e-5, 0.0),
    ("paths", BF16): (5e-2, 0.0),
    # logits of a model in bfloat16 beside the same model in float32: root of the mean square difference, by the logits' spread
    ("narrow", BF16): (2e-2, 0.0),
    # one implementation of an op beside its reference: outputs of the order of 1
    ("op", F32): (1e-5, 1e-5),
    ("op", BF16): (2e-2, 1e-2),
    ("op", F16): (2e-3, 2e-3),
    # SSM states, float32 whatever the model's dtype
    ("state", F32): (1e-5, 1e-5),
    # gradients: sums over tokens, so errors add
    ("gradient", F32): (1e-4, 1e-4),
    ("gradient", BF16): (5e-2, 2e-2),
    ("gradient", F16): (1e-2, 5e-3),
}


def excess(case: str, actual: torch.Tensor, expected: torch.Tensor, *, dtype=None) -> float:
    """How far the worst element lies beyond what is allowed (at most 0 when all is well; nan counts as infinitely far)."""
    absolute, relative = TOLERANCES[case, dtype or actual.dtype]
    actual, expected = actual.detach().double(), expected.detach().double()
    beyond = (actual - expected).abs() - absolute - relative * expected.abs()
    return beyond.nan_to_num(nan=torch.inf).max().item()


def assert_within(case: str, actual: torch.Tensor, expected: torch.Tensor, *, dtype=None) -> None:
    """Assert equal shapes and differences within the table. ``dtype``: the precision of the work, since logits are float32."""
    assert actual.shape == expected.shape, f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}"
    over = excess(case, actual, expected, dtype=dtype)
    largest = (actual.double() - expected.double()).abs().max().item()
    allowed = "{:g} + {:g} x |expected|".format(*TOLERANCES[case, dtype or actual.dtype])
    assert over <= 0, f"{case}: largest difference {largest:.3g}, allowed {allowed}"
