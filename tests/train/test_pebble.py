"""The command that makes the embedded model, from text files to a folder that loads, at a tiny size."""

import json

import pytest
import torch

from zamba_lm.model.load import load_model
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train import corpus, pebble

TINY = ["d_model=32", "n_layers=3", "hybrid_layers=[1,2]", "n_ssm_heads=2", "d_state=8", "n_heads=2", "d_ff=32", "adapter_rank=4"]
SIZE = ["--tokens", "512", "--row", "64", "--batch", "4", "--no-compile", *(x for item in TINY for x in ("--set", item))]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("tokens")
    for folder in ("text", "chat"):
        (data / folder).mkdir()
    for name in ("pretrain-00", "pretrain-15", "anneal-00", "anneal-04"):
        lines = [{"text": f"This is text {i} of {name}. " * 8} for i in range(12)]
        (data / "text" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chat = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you too. " * 9}]}
    (data / "chat" / "sft.jsonl").write_text((json.dumps(chat) + "\n") * 12)
    corpus.encode_folder(data, out, processes=1)
    return out


def test_it_writes_a_model_that_loads_and_says_what_it_is_worth(tokens, tmp_path, capsys):
    pebble.main([str(tokens), str(tmp_path), *SIZE])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["held_out"] for line in said] == ["pretrain", "anneal"] and all(0 < line["bits_per_byte"] < 10 for line in said)
    model = load_model(tmp_path / "zamba2-pebble", device="cpu")
    assert model.config.d_model == 32 and model.dtype == torch.bfloat16
    assert Tokenizer.load(tmp_path / "zamba2-pebble").encode_chat([{"role": "user", "content": "Hi"}])[0] == 1
    assert json.loads((tmp_path / "plan.json").read_text())["config"]["n_layers"] == 3
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "n_layer=3"], "did you mean 'n_layers'"),
        (["--set", "n_layers=three"], "expected FIELD=VALUE"),
        (["--set", "n_heads=7"], "not a multiple"),
        (["--tokens", "many"], "invalid"),
    ],
)
def test_a_mistake_is_one_clear_line(tokens, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as end:
        pebble.main([str(tokens), str(tmp_path), *arguments])
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_missing_corpus_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pebble.main([str(tmp_path / "nowhere"), str(tmp_path), *SIZE])
    assert "no corpus file pretrain" in capsys.readouterr().err
