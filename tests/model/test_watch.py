"""Passes that somebody watches, and passes over embeddings in place of ids."""

import pytest
import torch

from tests.model.tiny import FAMILIES, model, random_ids
from tests.numerics.tolerances import assert_within
from zamba_lm.model.batch import Batch

IDS = random_ids(2, 9)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_enters_each_layer(name):
    one, seen, stepwise = model(name), [], []

    def watch(into):
        return lambda x_TD: into.append(x_TD) or x_TD

    with torch.no_grad():
        plain = one.hidden(Batch.rectangle(IDS))
        assert torch.equal(one.hidden(Batch.rectangle(IDS), watch=watch(seen)), plain)
        state = one.new_state(2)
        for part in IDS.split((4, 1, 4), dim=1):
            stepwise.append([])
            one.hidden(Batch.rectangle(part), state, watch=watch(stepwise[-1]))
    assert len(seen) == len(one.layers) and torch.equal(seen[0], one.embedding(IDS).flatten(0, 1))
    for layer, expected in enumerate(seen):
        parts = [step[layer].unflatten(0, (2, -1)) for step in stepwise]
        assert_within("paths", torch.cat(parts, dim=1).flatten(0, 1), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_watcher_may_change_the_stream(name):
    one, calls = model(name), []

    def steer(x_TD):
        calls.append(1)
        return x_TD + 1.0 if len(calls) == 2 else x_TD

    with torch.no_grad():
        assert not torch.equal(one.hidden(Batch.rectangle(IDS), watch=steer), one.hidden(Batch.rectangle(IDS)))


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_in_place_of_ids(name):
    one, batch = model(name), Batch.rectangle(IDS)
    x_TD = one.embedding(batch.ids_T)
    kept = x_TD.clone()
    given = Batch(torch.empty(0), batch.packing, x_TD)
    with torch.no_grad():
        assert torch.equal(one(given), one(batch))
        assert torch.equal(one(given, one.new_state(2)), one(batch, one.new_state(2)))
    assert torch.equal(x_TD, kept)
