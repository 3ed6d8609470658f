"""Our answer to TRL's ``fused_lm_head=True`` is TRL's own, wherever padding lies."""

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from tests.numerics.tolerances import assert_within
from tests.train.tuning.conftest import ids, wrapped
from zamba_lm.train.tuning.lora import Lora, add_lora
from zamba_lm.train.tuning.native import bare, own_head

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1")


def rows(side):
    """(ids, mask, labels) of three sequences; of each the first third is not to be learned."""
    lengths = (5, 9, 1)
    parts = [(ids(n, n), [1] * n, [-100] * (n // 3) + ids(n, n)[n // 3 :]) for n in lengths]
    filled = [[pad(one, max(lengths) - len(one), filler, side) for one, filler in zip(part, (0, 0, -100))] for part in parts]
    return (torch.tensor(column) for column in zip(*filled))


def pad(values, n, filler, side):
    return values + [filler] * n if side == "right" else [filler] * n + values


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["zamba", "zamba2, everything"])
def test_the_same_as_trls(name, side):
    input_ids, mask, labels = rows(side)
    theirs, ours = wrapped(name), wrapped(name)
    add_fused_lm_head(theirs, outputs=FIELDS)
    own_head(ours)
    found = []
    for model in (theirs, ours):
        out = model(input_ids=input_ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        (out.log_probs * torch.arange(out.log_probs.shape[1])).sum().backward()
        found.append(out)
    counted = labels[:, 1:] != -100
    if side == "left":  # TRL counts the first token of a text as predicted by the padding before it
        counted &= mask[:, :-1] == 1
    assert torch.equal(found[1].label_mask, counted)
    for field in FIELDS:
        right = found[0][field].float() * counted
        assert_within("op", found[1][field].float(), right)
        assert found[1][field][~counted].count_nonzero() == 0
    if side == "right":
        assert abs(found[0].loss.item() - found[1].loss.item()) < 1e-5
        for a, b in zip(ours.parameters(), theirs.parameters()):
            assert_within("gradient", a.grad, b.grad)


def test_labels_that_are_shifted_already():
    model = wrapped()
    own_head(model)
    row, labels = torch.tensor([ids(8, 1)]), torch.tensor([ids(8, 1)])
    plain = model(input_ids=row, labels=labels, fused_lm_head=True)
    shifted = model(input_ids=row, shift_labels=torch.cat([labels[:, 1:], torch.tensor([[-100]])], 1), fused_lm_head=True)
    assert torch.equal(shifted.log_probs[:, :-1], plain.log_probs) and shifted.log_probs[0, -1] == 0
    assert abs(shifted.loss.item() - plain.loss.item()) < 1e-6
    assert abs(model(input_ids=row, labels=labels, fused_lm_head=True, num_items_in_batch=14).loss.item() * 2 - plain.loss) < 1e-5


def test_nothing_crosses_a_border():
    model, parts = wrapped(), [ids(4, 1), ids(6, 2)]
    own_head(model)
    row = torch.tensor([parts[0] + parts[1]])
    together = model(input_ids=row, labels=row, lengths=(4, 6), fused_lm_head=True)
    alone = [model(input_ids=torch.tensor([p]), labels=torch.tensor([p]), fused_lm_head=True).log_probs[0] for p in parts]
    assert_within("paths", together.log_probs[0], torch.cat([alone[0], torch.zeros(1), alone[1]]).detach())
    assert together.label_mask[0].tolist() == [True] * 3 + [False] + [True] * 5


def test_without_the_word_it_is_the_models_own_forward_adapters_or_not():
    plain, adapted = wrapped(), add_lora(wrapped(), Lora(rank=2))
    own_head(adapted)
    assert bare(adapted) is adapted.base_model.model
    row = torch.tensor([ids(8, 1)])
    assert_within("paths", adapted(input_ids=row).logits, plain(input_ids=row).logits)
    assert_within("paths", adapted(input_ids=row, labels=row).loss, plain(input_ids=row, labels=row).loss)


def test_nothing_to_learn_costs_nothing_and_has_gradients_of_zero():
    model, row = wrapped(), torch.tensor([ids(6, 1)])
    own_head(model)
    out = model(input_ids=row, labels=torch.full_like(row, -100), fused_lm_head=True)
    out.loss.backward()
    assert out.loss == 0 and out.log_probs.shape == (1, 5) and not out.label_mask.any()
    assert all(p.grad is None or p.grad.count_nonzero() == 0 for p in model.parameters())
