"""What tools do to a model: copy, pickle, resize, recompute, train, classify."""

import copy
import io
import pickle

import pytest
import torch
from transformers import Zamba2ForSequenceClassification as Theirs

from tests.hf.pairs import IDS, NAMES, folder, mask, ours
from tests.model.tiny import random_model
from tests.numerics.tolerances import assert_within
from tests.parity.cases import CASES, FULL
from zamba_lm.errors import ZambaError
from zamba_lm.hf import Zamba2ForCausalLM, Zamba2ForSequenceClassification, wrap
from zamba_lm.model.parts import Linear


@pytest.mark.parametrize("name", NAMES)
def test_copies(name, tmp_path):
    model = ours(name)
    expected = model(IDS).logits
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert torch.equal(one(IDS).logits, expected) and one.lm_head.weight is one.zamba.embedding.weight
        assert one.generate(IDS[:1], max_new_tokens=2, do_sample=False).shape == (1, 23)
        with torch.no_grad():
            one.zamba.embedding.weight.zero_()
        assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("size", [70, 64, 40])
def test_another_vocabulary(size, tmp_path):
    model = ours(FULL)
    before = model(IDS % 40).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert (
        model.lm_head.weight is model.zamba.embedding.weight and model.zamba.config.vocab_size == model.config.vocab_size == size
    )
    assert isinstance(model.lm_head, Linear)
    assert_within("paths", model(IDS % 40).logits[..., : min(size, 61)], before[..., : min(size, 61)])
    model.save_pretrained(tmp_path)
    again = Zamba2ForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS % 40).logits, model(IDS % 40).logits)
    assert model.generate(IDS[:1] % 40, max_new_tokens=2).shape[0] == 1


def test_a_vocabulary_padded_to_a_multiple():
    model = ours(FULL).requires_grad_(True)
    assert model.resize_token_embeddings(pad_to_multiple_of=16).num_embeddings == 64
    model(IDS, labels=IDS).loss.backward()
    assert model.zamba.embedding.weight.grad.shape == (64, 32)


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": False}])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing(name, kwargs):
    found = []
    for enable in (False, True):
        model = ours(name).requires_grad_(True).train()
        if enable:
            model.activation_checkpointing_enable(kwargs)
            assert model.is_activation_checkpointing
            assert all("layers" in layer.recomputed for layer in model.zamba.layers)
        model(IDS, labels=IDS, attention_mask=mask("left")).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing and not any(layer.recomputed for layer in model.zamba.layers)
    model.activation_checkpointing_enable(every_n_layers=2)
    assert [bool(layer.recomputed) for layer in model.zamba.layers] == [True, False, True, False, True]
    with pytest.raises(ZambaError, match="offload=False"):
        model.activation_checkpointing_enable(offload=True)


def test_transformers_classification_agrees():
    model = Zamba2ForSequenceClassification.from_pretrained(folder(FULL), num_labels=3)
    other = Theirs.from_pretrained(folder(FULL), num_labels=3, chunk_size=32)
    with torch.no_grad():
        other.score.weight.copy_(model.score.weight)
        for side in ("left", "right"):
            ids = IDS.masked_fill(mask(side) == 0, 0)
            found, expected = (one(ids, attention_mask=mask(side), use_cache=False).logits for one in (model, other))
            assert_within("parity", found, expected)
            assert_within("paths", found, torch.cat([model(row[kept.bool()][None]).logits for row, kept in zip(ids, mask(side))]))
        assert_within(
            "parity", model(IDS.masked_fill(mask("right") == 0, 0)).logits, model(IDS, attention_mask=mask("right")).logits
        )
    for kind, labels in (
        ("single_label_classification", torch.tensor([0, 2, 1])),
        ("multi_label_classification", torch.rand(3, 3)),
    ):
        model.config.problem_type = other.config.problem_type = kind
        assert_within("parity", model(IDS, labels=labels).loss, other(IDS, labels=labels, use_cache=False).loss)
    model(IDS, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_texts_without_a_padding_token():
    model = Zamba2ForSequenceClassification.from_pretrained(folder(FULL), num_labels=3)
    model.config.pad_token_id = None
    assert model(IDS[:1]).logits.shape == (1, 3)
    with pytest.raises(ZambaError, match="give attention_mask"):
        model(IDS)


def test_trl_fuses_the_head_of_ours():
    from trl.trainer.utils import add_fused_lm_head

    model, plain = ours(FULL).requires_grad_(True), ours(FULL).requires_grad_(True)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    labels = IDS.masked_fill(mask("right") == 0, -100)
    out = model(IDS, attention_mask=mask("right"), labels=labels, fused_lm_head=True)
    expected = plain(IDS, attention_mask=mask("right"), labels=labels)
    assert_within("parity", out.loss, expected.loss)
    assert out.log_probs.shape == (3, 20) and out.is_top1.shape == (3, 20)
    out.loss.backward()
    expected.loss.backward()
    for one, other in zip(model.parameters(), plain.parameters()):
        assert_within("gradient", one.grad, other.grad)


def test_a_plain_trainer_trains_it(tmp_path):
    """transformers' Trainer, evaluation and checkpoints included, without anything of ours around it."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in IDS.repeat(4, 1)]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=6,
        per_device_train_batch_size=3,
        learning_rate=3e-3,
        save_steps=6,
        eval_strategy="steps",
        eval_steps=3,
        report_to=[],
        use_cpu=True,
        gradient_checkpointing=True,
        disable_tqdm=True,
        logging_steps=3,
    )
    model = ours(FULL).requires_grad_(True)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:3])
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[1] < losses[0]
    again = Zamba2ForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    assert torch.equal(again(IDS).logits, model.eval()(IDS).logits)


def test_packed_models_are_not_wrapped():
    zamba = random_model(CASES[FULL])
    projection = zamba.blocks[0].o
    projection.weight, projection.row_scale = (
        torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False),
        torch.ones(32),
    )
    with pytest.raises(ZambaError, match="packed for inference"):
        wrap(zamba)


@pytest.mark.parametrize("told", [{}, {"labels": IDS}, {"labels": IDS, "logits_to_keep": 0}, {"output_hidden_states": True}])
def test_tuples_on_request(told):
    model = ours(FULL)
    names, found = model(IDS, **told), model(IDS, return_dict=False, **told)
    assert isinstance(found, tuple) and len(found) == len(names.to_tuple())
    for one, other in zip(found, names.to_tuple()):
        assert all(torch.equal(a, b) for a, b in zip(one, other)) if isinstance(one, tuple) else torch.equal(one, other)
    model.config.return_dict = False
    assert isinstance(model(IDS, **told), tuple)
