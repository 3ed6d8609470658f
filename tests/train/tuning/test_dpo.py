"""Preference tuning: TRL's loss over our head, a reference that is asked once, one packed pass a step."""

import pytest
import torch
import torch.nn.functional as F

from tests.train.tuning.conftest import dpo_arguments, preferences, wrapped
from zamba_lm.model.zamba import Zamba
from zamba_lm.train.trainer.journal import read
from zamba_lm.train.tuning.dpo import Dpo
from zamba_lm.train.tuning.fingerprint import fingerprint
from zamba_lm.train.tuning.lora import Lora, add_lora, peft_config


def trainer(model, out, tokens, data=None, lora=False, **given):
    config = peft_config(model, Lora(rank=2)) if lora else None
    args = dpo_arguments(out, **given)
    return Dpo(model, args=args, train_dataset=data or preferences(), processing_class=tokens, peft_config=config)


@torch.no_grad()
def answers(model, rows):
    """log p of every chosen and rejected answer given its prompt, (pairs, 2), from whole logits."""
    found = []
    for row in rows:
        for answer in (row["chosen_ids"], row["rejected_ids"]):
            ids, start = row["prompt_ids"] + answer, len(row["prompt_ids"])
            logp = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].double().log_softmax(-1)
            found.append(logp.gather(1, torch.tensor(answer)[:, None]).sum())
    return torch.stack(found).view(-1, 2)


def by_hand(policy, reference, beta=0.5):
    """The loss of Rafailov et al. (2023), equation 7, and the margins of the implicit rewards."""
    margins = beta * ((policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1]))
    return -F.logsigmoid(margins).mean().item(), margins


@pytest.mark.parametrize("lora", [False, True])
def test_the_loss_is_the_one_of_the_paper(lora, tmp_path, tokens):
    model, data = wrapped(), preferences()
    reference = answers(model, data)
    run = trainer(model, tmp_path, tokens, data, lora, learning_rate=1e-2)
    run.fit()
    rows = [run.train_dataset[i] for i in range(5)]
    policy = answers(run.model, rows)
    assert (policy - reference[:5]).abs().max() > 0.05  # it has moved
    with torch.no_grad():
        loss = run.compute_loss(run.model, run.data_collator(rows)).item()
    assert abs(loss - by_hand(policy, reference[:5])[0]) < 2e-5


def test_it_begins_at_ln_2_and_what_is_logged_is_true(tmp_path, tokens):
    model, data = wrapped(), preferences(4)
    reference = answers(model, data)
    run = trainer(model, tmp_path, tokens, data, max_steps=2, lr_scheduler_type="constant", weight_decay=0.0)
    run.fit()
    first, second = [entry for entry in read(tmp_path / "log.jsonl") if "loss" in entry]
    assert abs(first["loss"] - 0.6931472) < 1e-6 and first["rewards/margins"] == 0
    again = trainer(wrapped(), tmp_path / "again", tokens, data, max_steps=1, lr_scheduler_type="constant", weight_decay=0.0)
    again.fit()
    policy = answers(again.model, data)
    loss, margins = by_hand(policy, reference)
    assert abs(second["loss"] - loss) < 1e-5 and loss < first["loss"]
    assert abs(second["rewards/margins"] - margins.mean().item()) < 1e-4
    assert second["rewards/accuracies"] == (margins > 0).double().mean().item()
    assert abs(second["logps/chosen"] - policy[:, 0].mean().item()) < 1e-3
    assert second["tokens"] == 2 * sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in data)


@pytest.mark.parametrize("lora", [False, True])
def test_one_pass_a_step_without_padding(lora, tmp_path, tokens, monkeypatch):
    data = preferences(4)
    run = trainer(wrapped(), tmp_path, tokens, data, lora, max_steps=3)
    passes = []
    monkeypatch.setattr(Zamba, "hidden", spied(Zamba.hidden, passes))
    run.fit()
    whole = [len(r["prompt_ids"]) + len(r[key]) for key in ("chosen_ids", "rejected_ids") for r in data]
    assert len(passes) == 3 and all(sorted(one) == sorted(whole) for one in passes)


def spied(hidden, seen):
    def wrapper(self, batch, *args, **kwargs):
        seen.append(batch.packing.lengths)
        return hidden(self, batch, *args, **kwargs)

    return wrapper


def test_the_reference_is_asked_once(tmp_path, tokens, monkeypatch):
    first = trainer(wrapped(), tmp_path, tokens)
    expected = answers(wrapped(), preferences())
    for column, name in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
        assert (torch.tensor(first.train_dataset[name]) - expected[:, column]).abs().max() < 1e-4
    asked = []
    theirs = Dpo.compute_ref_log_probs
    monkeypatch.setattr(Dpo, "compute_ref_log_probs", lambda *args: asked.append(1) or theirs(*args))
    again = trainer(wrapped(), tmp_path, tokens)
    assert not asked and again.train_dataset["ref_chosen_logps"] == first.train_dataset["ref_chosen_logps"]
    trainer(wrapped(), tmp_path, tokens, max_length=9)  # other tokens of the same pairs
    trainer(wrapped(), tmp_path, tokens, preferences(11))  # other pairs
    trainer(wrapped(seed=1), tmp_path, tokens)  # another reference
    assert len(asked) == 3 * 3
    assert len(list((tmp_path / "reference").iterdir())) == 4


def test_a_half_written_cache_is_no_cache(tmp_path, tokens):
    trainer(wrapped(), tmp_path, tokens)
    (file,) = (tmp_path / "reference").iterdir()
    file.rename(file.with_name(file.name + ".part"))
    trainer(wrapped(), tmp_path, tokens)
    assert file.exists()


def test_other_losses_of_trl(tmp_path, tokens):
    run = trainer(wrapped(), tmp_path, tokens, loss_type=["ipo", "sft"], loss_weights=[1.0, 0.1], max_steps=8, learning_rate=1e-3)
    run.fit()
    losses = [entry["loss"] for entry in read(tmp_path / "log.jsonl") if "loss" in entry]
    assert sum(losses[-2:]) < sum(losses[:2])


def test_a_fingerprint_sees_every_number_and_no_adapter():
    model = wrapped()
    first = fingerprint(model)
    assert fingerprint(wrapped()) == first != fingerprint(wrapped(seed=1))
    for parameter in model.parameters():
        value = parameter.data.flatten()[-1].item()
        parameter.data.view(-1)[-1] = value + 1
        assert fingerprint(model) != first
        parameter.data.view(-1)[-1] = value
    weight = model.zamba.embedding.weight.data
    weight[[0, 1]] = weight[[1, 0]].clone()  # the same numbers elsewhere
    assert fingerprint(model) != first
    adapted = add_lora(wrapped(), Lora(rank=2))
    before = fingerprint(adapted)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 1
    assert fingerprint(adapted) == before


def test_accumulated_micro_batches_are_one_batch(tmp_path, tokens):
    for name, given in {"whole": {}, "parts": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}}.items():
        trainer(wrapped(), tmp_path / name, tokens, max_steps=3, **given).fit()
    whole, parts = ([e for e in read(tmp_path / name / "log.jsonl") if "loss" in e] for name in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert abs(a["grad_norm"] / b["grad_norm"] - 1) < 1e-3
