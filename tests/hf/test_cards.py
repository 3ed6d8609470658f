"""The quick-start code of the model cards, unchanged but for the name of the folder and the device."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import Zamba2ForCausalLM as TheirZamba2

from tests.hf.pairs import folder, with_tokenizer
from tests.parity.cases import FULL, PLAIN
from zamba_lm import hf
from zamba_lm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    hf.register()
    hf.register()
    return with_tokenizer(tmp_path_factory.mktemp("card") / "Zamba2-2.7B-instruct")


def test_the_chat_of_the_instruct_cards(card):
    tokenizer = AutoTokenizer.from_pretrained(card)
    model = AutoModelForCausalLM.from_pretrained(card, device_map="cpu", torch_dtype=torch.bfloat16)

    user_turn_1 = (
        "In one season a flower blooms three times. In one year, there is one blooming season. How many times in two years?"
    )
    assistant_turn_1 = (
        "In one season, a flower blooms three times. In one year, there is one blooming season. Therefore, six times."
    )
    user_turn_2 = "How many times does the flower bloom in 4 years?"
    sample = [
        {"role": "user", "content": user_turn_1},
        {"role": "assistant", "content": assistant_turn_1},
        {"role": "user", "content": user_turn_2},
    ]
    chat_sample = tokenizer.apply_chat_template(sample, tokenize=False)
    input_ids = tokenizer(chat_sample, return_tensors="pt", add_special_tokens=False).to("cpu")
    outputs = model.generate(
        **input_ids,
        max_new_tokens=15,
        return_dict_in_generate=False,
        output_scores=False,
        use_cache=True,
        num_beams=1,
        do_sample=False,
    )
    text = tokenizer.decode(outputs[0])

    assert isinstance(model, hf.Zamba2ForCausalLM) and model.dtype == torch.bfloat16
    mine = Tokenizer.load(card)
    ids = input_ids["input_ids"][0].tolist()
    assert ids == mine.encode_chat(sample, add_generation_prompt=False)
    assert outputs.shape[1] <= len(ids) + 15 and f"user\n{user_turn_1}<|im_end|>" in text


@pytest.mark.parametrize(("name", "ours"), [(PLAIN, hf.ZambaForCausalLM), (FULL, hf.Zamba2ForCausalLM)])
def test_the_prompt_of_the_base_cards(name, ours, card, tmp_path):
    folder = with_tokenizer(tmp_path / "base", name=name, instruct=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", torch_dtype=torch.bfloat16, revision="iter2500")

    input_text = "What factors contributed to the fall of the Roman Empire?"
    input_ids = tokenizer(input_text, return_tensors="pt").to(model.device)
    outputs = model.generate(**input_ids, max_new_tokens=10)
    text = tokenizer.decode(outputs[0])

    assert type(model) is ours and input_text in text and outputs.shape[1] > input_ids["input_ids"].shape[1]


def test_without_kernels(card):
    model = AutoModelForCausalLM.from_pretrained(card, device_map="cpu", torch_dtype=torch.bfloat16, use_mamba_kernels=False)
    assert model.config.use_mamba_kernels is False and isinstance(model, hf.Zamba2ForCausalLM)
    assert model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=3, do_sample=False).shape == (1, 6)


def test_a_batch_of_chats_padded_by_the_tokenizer(card):
    tokenizer = AutoTokenizer.from_pretrained(card, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(card, dtype=torch.float32)
    texts = ["One", "A somewhat longer text than that", "Two words"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert batch["attention_mask"].sum(1).tolist() == [len(Tokenizer.load(card).encode(text)) for text in texts]
    together = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for text, row in zip(texts, together):
        alone = tokenizer(text, return_tensors="pt")
        assert torch.equal(model.generate(**alone, max_new_tokens=6, do_sample=False)[0, alone["input_ids"].shape[1] :], row)


def test_every_auto_class_gives_ours(card):
    assert type(AutoModelForCausalLM.from_pretrained(folder(PLAIN))) is hf.ZambaForCausalLM
    assert type(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(card))) is hf.Zamba2ForCausalLM
    scores = AutoModelForSequenceClassification.from_pretrained(card, num_labels=5)
    assert type(scores) is hf.Zamba2ForSequenceClassification and scores.score.weight.shape == (5, 32)
    assert type(TheirZamba2.from_pretrained(card)).__module__.startswith("transformers.")  # their own classes stay theirs


def test_nothing_is_registered_by_importing():
    import subprocess
    import sys

    code = (
        "import zamba_lm.hf\nfrom transformers import AutoModelForCausalLM as A, Zamba2Config as C\n"
        "assert A._model_mapping[C].__module__.startswith('transformers'); zamba_lm.hf.register()\n"
        "assert A._model_mapping[C].__module__.startswith('zamba_lm')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
