"""Bits per byte by source: every target paid for once, whatever the windows and the batches."""

import math

import pytest
import torch

from tests.train.data.conftest import chat, pair, text
from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba
from zamba_lm.train.data import bits_by_source


@pytest.fixture(scope="module")
def model():
    config = ZambaConfig(
        family="zamba2", vocab_size=32000, d_model=16, n_layers=2, hybrid_layers=(1,), n_blocks=1, n_ssm_heads=2, d_state=8,
        n_heads=2, d_ff=32, adapter_rank=4, rope_theta=10000.0, max_positions=512,
    )  # fmt: skip
    return Zamba(config, device="cpu", dtype=torch.float32).init_weights(0)


def by_definition(model, shards, row):
    """Nats and bytes of every source, token by token."""
    paid = {name: [0.0, 0] for name in shards.names}
    for index in range(len(shards)):
        entries = shards.document(index).astype(int)
        ids, targets = torch.from_numpy(entries % shards.mark), entries >= shards.mark
        name = shards.names[shards.source[index]]
        paid[name][1] += int(shards.table["bytes"][index])
        for at in range(0, len(ids) - 1, row):
            window = ids[at : at + row + 1]
            with torch.inference_mode():
                hidden = model.hidden(Batch.rectangle(window[None, :-1]))
                logs = (hidden @ model.embedding.weight.T).log_softmax(-1)
            for place, token in enumerate(window[1:].tolist()):
                paid[name][0] -= float(logs[place, token]) * bool(targets[at + place + 1])
    return paid


@pytest.mark.parametrize(("row", "batch"), [(512, 4), (16, 1), (7, 3)])
def test_bits_of_every_source_are_those_of_its_tokens(model, make, row, batch):
    shards = make([{"text": text(i), "source": f"s{i % 3}"} for i in range(20)])
    told, paid = bits_by_source(model, shards, row=row, batch=batch), by_definition(model, shards, row)
    assert told["by_source"] == pytest.approx({name: nats / math.log(2) / size for name, (nats, size) in paid.items()}, rel=1e-5)
    nats, size = (sum(column) for column in zip(*paid.values()))
    assert told["all"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_in_chats_only_answers_are_paid_for(model, make):
    shards = make([chat(i, 2) for i in range(4)])
    assert int(shards.table["bytes"].sum()) == sum(
        len(m["content"].encode()) for i in range(4) for m in chat(i, 2)["messages"] if m["role"] == "assistant"
    )
    paid = by_definition(model, shards, 512)
    told = bits_by_source(model, shards, row=512)["by_source"]
    assert told == pytest.approx({name: nats / math.log(2) / size for name, (nats, size) in paid.items()}, rel=1e-5)


def test_a_sample_is_the_first_documents_of_each_source(model, make):
    records = [{"text": text(i), "source": f"s{i % 2}"} for i in range(12)]
    first = [next(r for r in records if r["source"] == name) for name in ("s0", "s1")]
    told, expected = bits_by_source(model, make(records), max_bytes=1), bits_by_source(model, make(first))
    assert told["by_source"] == pytest.approx(expected["by_source"], rel=1e-5)
    assert told["all"] == pytest.approx(expected["all"], rel=1e-5)


def test_pairs_and_models_of_another_vocabulary_are_refused(model, make, texts, monkeypatch):
    with pytest.raises(ZambaError, match="holds preference pairs; bits per byte are of texts and chats"):
        bits_by_source(model, make([pair(1)]))
    monkeypatch.setattr(texts, "tokenizer", texts.tokenizer | {"vocab_size": 32001})
    with pytest.raises(ZambaError, match="the model knows 32000 tokens"):
        bits_by_source(model, texts)
