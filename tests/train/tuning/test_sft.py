"""Supervised tuning: what counts, how it is laid out, and that it is learned."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from tests.model.tiny import CONFIGS, random_model
from tests.train.tuning.conftest import examples, sft_arguments, wrapped
from zamba_lm.hf import wrap
from zamba_lm.model.zamba import Zamba
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.recipes.shapes import SHAPES
from zamba_lm.train.trainer.journal import read
from zamba_lm.train.tuning.job import for_trl
from zamba_lm.train.tuning.lora import Lora, peft_config
from zamba_lm.train.tuning.sft import Sft, packed


def trainer(model, out, tokens, data=None, lora=False, dropout=0.0, **given):
    config = peft_config(model, Lora(rank=2, dropout=dropout)) if lora else None
    args = sft_arguments(out, **given)
    return Sft(model, args, train_dataset=data or examples(), processing_class=tokens, peft_config=config)


def by_hand(model, rows):
    """Mean of -log p over the labels that count, one sequence at a time, by torch from whole logits."""
    total, count = 0.0, 0
    for row in rows:
        logits = model.zamba.logits(torch.tensor([row["input_ids"]]))[0, :-1].double()
        labels = torch.tensor(row["labels"][1:])
        total += F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


def losses(out):
    return [entry["loss"] for entry in read(out / "log.jsonl") if "loss" in entry]


@pytest.mark.parametrize("name", ["zamba", "zamba2, everything"])
def test_the_loss_of_a_batch_is_the_mean_over_what_counts(name, tmp_path, tokens):
    model, rows = wrapped(name), list(examples(5))
    run = trainer(model, tmp_path, tokens)
    batch = run.data_collator(rows)
    assert batch["lengths"] == tuple(len(row["input_ids"]) for row in rows)
    with torch.no_grad():
        loss = run.compute_loss(model, batch).item()
    assert abs(loss - by_hand(model, rows)) < 1e-5
    counted = sum(label != -100 for row in rows for label in row["labels"][1:])
    with torch.no_grad():
        assert abs(run.compute_loss(model, batch, num_items_in_batch=2 * counted).item() - loss / 2) < 1e-6


def test_what_the_user_says_is_read_and_not_learned(tmp_path, tokens):
    model, rows = wrapped(), list(examples(2))
    run = trainer(model, tmp_path, tokens)

    def loss(change):
        batch = run.data_collator(rows)
        change(batch)
        with torch.no_grad():
            return run.compute_loss(model, batch).item()

    def ask_differently(batch):
        batch["input_ids"][0, 1] = 7

    first = rows[0]["labels"].count(-100)
    assert loss(lambda batch: batch["labels"][0, :first].fill_(-100)) == loss(lambda batch: None)
    assert loss(lambda batch: batch["labels"][0, 1].fill_(9)) != loss(lambda batch: None)  # were it a label, it would count
    assert loss(ask_differently) != loss(lambda batch: None)  # it is context


@pytest.mark.parametrize("name", ["zamba", "zamba2, everything"])
def test_packed_is_unpacked_is_padded(name, tmp_path, tokens):
    model, rows = wrapped(name), list(examples(6))
    run = trainer(model, tmp_path, tokens)
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key, filler):
        return torch.tensor([row[key] + [filler] * (longest - len(row[key])) for row in rows])

    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
    layouts = {
        "packed": packed(rows),
        "padded": {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": mask},
    }
    found = {}
    for layout, batch in layouts.items():
        model.zero_grad()
        loss = run.compute_loss(model, batch)
        loss.backward()
        found[layout] = [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    assert abs(found["packed"][0].item() - by_hand(model, rows)) < 1e-5
    for a, b in zip(*found.values()):
        assert (a - b).abs().max() <= 2e-6 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("lora", [False, True])
def test_a_few_steps_lower_the_loss(lora, tmp_path, tokens):
    model = wrapped()
    run = trainer(model, tmp_path, tokens, lora=lora, packing=True, max_steps=12, learning_rate=1e-2 if lora else 3e-3)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.fit()
    assert sum(losses(tmp_path)[-3:]) < 0.9 * sum(losses(tmp_path)[:3])
    changed = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in changed) == lora


def test_in_bfloat16_adapters_read_bfloat16_and_stay_float32(tmp_path, tokens):
    model = wrap(random_model(CONFIGS["zamba2, everything"], dtype=torch.bfloat16))
    run, seen = trainer(model, tmp_path, tokens, lora=True, dropout=0.1, max_steps=2, bf16=True), set()
    for name, module in run.model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    run.fit()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in run.model.parameters() if p.requires_grad} == {torch.float32}
    assert all(m.cast_input_dtype_enabled for m in run.model.modules() if hasattr(m, "lora_A"))  # as PEFT has it outside


def test_trl_packs_and_no_step_sees_padding(tmp_path, tokens, monkeypatch):
    seen = []
    monkeypatch.setattr(Zamba, "hidden", spied(Zamba.hidden, seen))
    data = examples(12)
    run = trainer(wrapped(), tmp_path, tokens, data=data, packing=True, max_steps=-1, num_train_epochs=1)
    seen.clear()
    run.fit()
    lengths = sorted(n for batch in seen for n in batch)
    assert lengths == sorted(len(row["input_ids"]) for row in data)
    assert run.tokens_seen == sum(lengths)


def spied(hidden, seen):
    def wrapper(self, batch, *args, **kwargs):
        seen.append(batch.packing.lengths)
        return hidden(self, batch, *args, **kwargs)

    return wrapper


def test_accumulated_micro_batches_are_one_batch(tmp_path, tokens):
    """The mean is over the tokens of the step, not of means."""
    for name, given in {"whole": {}, "parts": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}}.items():
        trainer(wrapped(), tmp_path / name, tokens, max_steps=4, **given).fit()
    for a, b in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert abs(a - b) < 1e-5


def test_trls_other_losses_go_through_our_head(tmp_path, tokens):
    model, rows = wrapped(), list(examples(3))
    run = trainer(model, tmp_path, tokens, loss_type="dft")
    with torch.no_grad():
        loss = run.compute_loss(model, run.data_collator(rows)).item()
        total = count = 0
        for row in rows:
            logp = model.zamba.logits(torch.tensor([row["input_ids"]]))[0, :-1].log_softmax(-1)
            at = [i for i, label in enumerate(row["labels"][1:]) if label != -100]
            picked = logp[at, torch.tensor(row["labels"][1:])[at]]
            total, count = total - (picked * picked.exp()).sum().item(), count + len(at)
    assert abs(loss - total / count) < 1e-5


def test_labels_default_to_all_tokens():
    batch = packed([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9, 10, 11], "seq_lengths": [1, 3]}])
    assert batch["lengths"] == (3, 1, 3)
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100, 10, 11]]


def test_trl_learns_what_the_assistant_says_and_that_it_ends(tmp_path):
    """From messages, with TRL's own preparation and the template of our chat models."""
    tokenizer = for_trl(Tokenizer.mistral(instruct=True), tmp_path, sft_arguments(tmp_path))
    template = tokenizer.chat_template
    turns = [{"role": role, "content": text} for role, text in (("system", "s"), ("user", "say 7"), ("assistant", "It is 7."))]
    chats = Dataset.from_list([{"messages": [*turns, *turns[1:]]}, {"messages": turns}])
    model = wrap(Zamba(SHAPES["tiny"]).init_weights(0))
    args = sft_arguments(tmp_path, assistant_only_loss=True, packing=True, max_length=96)
    run = Sft(model, args, train_dataset=chats, processing_class=tokenizer)
    batch = run.data_collator([run.train_dataset[0]])
    ours = [Tokenizer.mistral(instruct=True).encode_chat(chat["messages"], add_generation_prompt=False) for chat in chats]
    assert sorted(batch["lengths"]) == sorted(map(len, ours))
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert torch.equal(labels[labels != -100], ids[labels != -100])
    said = tokenizer.decode(labels[labels != -100]).replace(" ", "")
    assert said == "Itis7.<|im_end|>" * 3
    assert tokenizer.chat_template == template


def test_nothing_is_sent_anywhere(tmp_path, tokens, monkeypatch):
    import trl.trainer.base_trainer as theirs

    monkeypatch.setattr(theirs, "send_telemetry", lambda *a, **k: pytest.fail("telemetry"))
    trainer(wrapped(), tmp_path, tokens, data=Dataset.from_dict({"input_ids": [[3, 4]]}))
