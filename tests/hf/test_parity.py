"""Our classes beside transformers' own on the same files: logits with padding on either side, losses, hidden states."""

import pytest
import torch
import torch.nn.functional as F

from tests.hf.pairs import CLASSES, IDS, NAMES, folder, mask, other, ours
from tests.numerics.tolerances import assert_within
from tests.parity.cases import CASES
from zamba_lm.errors import ZambaError
from zamba_lm.model.load import load_model

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits_agree(name, side):
    padding = mask(side) if side != "none" else None
    with torch.no_grad():
        found = ours(name)(IDS, attention_mask=padding).logits
        expected = other(name)(IDS, attention_mask=padding, use_cache=False).logits
    kept = torch.ones_like(IDS, dtype=torch.bool) if padding is None else padding.bool()
    assert_within("parity", found[kept], expected[kept])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    """A padded row says what it says alone, and its padding repeats its neighbour."""
    model, padding = ours(name), mask(side).bool()
    found = model(IDS, attention_mask=padding, use_cache=False).logits
    noisy = torch.where(padding, IDS, 60 - IDS % 60)
    assert torch.equal(model(noisy, attention_mask=padding.long(), use_cache=False).logits, found)
    for row in range(len(IDS)):
        alone = model(IDS[row][padding[row]][None], use_cache=False).logits[0]
        assert_within("paths", found[row][padding[row]], alone)
        edge, tokens = (0, alone[0]) if side == "left" else (-1, alone[-1])
        assert_within("paths", found[row, edge], tokens)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_losses_and_gradients_agree(name, side, tmp_path):
    """Labels of padding are ignored, as a collator sets them; the first token behind padding on the left is no target for us."""
    padding = mask(side) if side != "none" else torch.ones_like(IDS)
    labels = IDS.masked_fill(padding == 0, -100)
    if side == "left":
        labels = labels.masked_fill(F.pad(padding, (1, 0))[:, :-1] == 0, -100)
    labels[:, 5] = -100
    one, their = ours(name).requires_grad_(True), other(name)
    loss = one(IDS, attention_mask=padding, labels=labels).loss
    loss.backward()
    expected = their.requires_grad_(True)(IDS, attention_mask=padding, labels=labels, use_cache=False).loss
    expected.backward()
    assert_within("parity", loss, expected)
    save, grads = {n: p.detach().clone() for n, p in their.named_parameters()}, {}
    with torch.no_grad():
        for parameter in their.parameters():
            parameter.copy_(parameter.grad)
        their.save_pretrained(tmp_path)
        for parameter_name, parameter in their.named_parameters():
            parameter.copy_(save[parameter_name])
        their.zero_grad()
        their.requires_grad_(False)
    grads = dict(load_model(tmp_path).named_parameters())
    for parameter_name, parameter in one.zamba.named_parameters():
        assert_within("gradient", parameter.grad, grads[parameter_name])


def test_hidden_states_agree(name):
    """Theirs are the same at both ends; between, they report what leaves the mixers, which is what enters the next layer."""
    with torch.no_grad():
        found = ours(name)(IDS, attention_mask=mask("left"), output_hidden_states=True).hidden_states
        expected = other(name)(IDS, attention_mask=mask("left"), output_hidden_states=True, use_cache=False).hidden_states
    assert len(found) == CASES[name].n_layers + 1
    kept = mask("left").bool()
    for mine, its in zip(found[-len(expected) :], expected):
        assert mine.shape == its.shape
        assert_within("parity", mine[kept], its[kept])


def test_embeddings_as_input_agree(name):
    model = ours(name)
    x = model.get_input_embeddings()(IDS)
    assert torch.equal(model(inputs_embeds=x).logits, model(IDS).logits)
    with torch.no_grad():
        assert_within("parity", model(inputs_embeds=0.5 * x).logits, other(name)(inputs_embeds=0.5 * x, use_cache=False).logits)


def test_gradients_reach_embeddings_and_hidden_states(name):
    model = ours(name)
    x = model.get_input_embeddings()(IDS).requires_grad_(True)
    out = model(inputs_embeds=x, attention_mask=mask("right"), output_hidden_states=True)
    for state in out.hidden_states[:-1]:
        state.retain_grad()
    out.logits.sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(state.grad is not None and state.grad.abs().sum() > 0 for state in out.hidden_states[:-1])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep", [1, 4, torch.tensor([0, 7, -1]), 0])
def test_logits_of_some_columns(name, side, keep):
    model = ours(name)
    whole = model(IDS, attention_mask=mask(side)).logits
    columns = keep if isinstance(keep, torch.Tensor) else slice(-keep if keep else None, None)
    assert_within("paths", model(IDS, attention_mask=mask(side), logits_to_keep=keep).logits, whole[:, columns])


def test_sequences_in_one_row_do_not_see_each_other(name):
    """The same by lengths, by positions that begin anew, by cumulative lengths, with labels shifted inside each sequence."""
    model, lengths = ours(name), (5, 1, 8, 7)
    ids = IDS[:1]
    labels = ids.clone()
    apart = [model(part, use_cache=False).logits[0] for part in ids.split(lengths, dim=1)]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    cumulative = torch.tensor([0, 5, 6, 14, 21], dtype=torch.int32)
    sum_of_losses = sum(
        F.cross_entropy(logits[:-1], part[0, 1:], reduction="sum") for logits, part in zip(apart, ids.split(lengths, dim=1))
    )
    for told in (
        {"lengths": lengths},
        {"position_ids": positions},
        {"cu_seq_lens_q": cumulative, "cu_seq_lens_k": cumulative, "max_length_q": 8, "max_length_k": 8},
    ):
        assert_within("paths", model(ids, **told).logits[0], torch.cat(apart))
        assert_within("paths", model(ids, labels=labels, **told).loss, sum_of_losses / 17)
        assert_within("paths", model(ids, labels=labels, num_items_in_batch=4, **told).loss, sum_of_losses / 4)
        assert model(ids, labels=labels, **told).logits is None
        assert model(ids, labels=labels, logits_to_keep=0, **told).logits.shape == (1, 21, 61)
    rows = model(IDS, lengths=(21, 4, 17, 21)).logits
    assert_within("paths", rows[1, 4:], model(IDS[1:2, 4:], use_cache=False).logits[0])


def test_labels_shifted_by_somebody_else(name):
    model, labels = ours(name), IDS
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    assert_within("paths", model(IDS, shift_labels=shifted).loss, model(IDS, labels=labels).loss)


def test_a_batch_without_targets_has_a_loss_of_zero(name):
    model = ours(name).requires_grad_(True)
    loss = model(IDS, labels=torch.full_like(IDS, -100)).loss
    loss.backward()
    assert loss == 0 and all(parameter.grad.abs().sum() == 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(3, 21, 32)}, "either input_ids or inputs_embeds"),
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": IDS[0]}, r"shape \(21,\), expected input_ids"),
        ({"input_ids": IDS[:, :0]}, "at least one row and one token"),
        ({"input_ids": IDS, "attention_mask": torch.ones(3, 20)}, r"attention_mask has shape \(3, 20\)"),
        ({"input_ids": IDS, "attention_mask": torch.zeros(3, 21)}, "leaves out every token"),
        ({"input_ids": IDS, "lengths": (60,)}, "60 tokens in all; expected lengths"),
        ({"input_ids": IDS, "lengths": (63,), "attention_mask": mask("left")}, "give one of them"),
        ({"input_ids": IDS, "position_ids": torch.zeros(2, 21)}, r"position_ids have shape \(2, 21\)"),
        ({"input_ids": IDS, "labels": IDS[:, 1:]}, r"labels have shape \(3, 20\)"),
        ({"input_ids": IDS, "labels": IDS, "use_cache": True}, "give labels with use_cache=False"),
        ({"input_ids": IDS, "lengths": (21, 42), "use_cache": True}, "one sequence a row"),
        ({"input_ids": IDS, "output_attentions": True}, "attention weights"),
        ({"input_ids": IDS, "atention_mask": IDS}, "unknown argument atention_mask"),
        ({"input_ids": IDS + 61}, "outside the vocabulary of 61"),
    ],
)
def test_what_does_not_fit_is_refused(name, arguments, says):
    with pytest.raises(ZambaError, match=says):
        ours(name)(**arguments)


def test_the_plain_definitions_on_request(name):
    from zamba_lm.ops.dispatch import forced, record

    plain = CLASSES[CASES[name].family].from_pretrained(folder(name), use_mamba_kernels=False)
    assert plain.config.use_mamba_kernels is False
    with torch.no_grad(), record() as calls:
        assert_within("paths", plain(IDS).logits, ours(name)(IDS).logits)
    kinds = [kind for op, kind in calls if op in ("linear", "scan", "ssd", "conv")]
    assert kinds[: len(kinds) // 2].count("reference") == len(kinds) // 2 and not forced()
