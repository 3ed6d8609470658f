"""A sequence that decodes alone takes the shorter way, and gets the same tokens whoever comes and goes meanwhile."""

import pytest

from tests.engine.tiny import model, oracle, prompt
from zamba_lm.engine.engine import Engine
from zamba_lm.engine.request import SamplingParams
from zamba_lm.model import kv
from zamba_lm.model.pack import freeze_constants
from zamba_lm.model.single import Single
from zamba_lm.model.zamba import Zamba

PROMPT, NEW = tuple(prompt(9)), 24


@pytest.fixture
def alone(monkeypatch):
    """The tokens that were fed the shorter way, by an engine of a model made ready; room for keys grows every few tokens."""
    fed, logits = [], Single.logits
    monkeypatch.setattr(kv, "STEP", 8)
    monkeypatch.setattr(Single, "logits", lambda self, token: fed.append(token) or logits(self, token))
    return fed


def engine():
    ready = Zamba(model().config).requires_grad_(False)
    ready.load_state_dict(model().state_dict())
    return Engine(freeze_constants(ready))


def test_every_token_but_the_first_is_made_the_shorter_way(alone):
    one = engine()
    id = one.add(PROMPT, SamplingParams(max_tokens=NEW))
    ids = one.run()[id].ids
    assert ids == oracle("zamba2", PROMPT, NEW)
    assert tuple(alone) == ids[:-1]


def test_another_request_comes_and_goes(alone):
    one, other = engine(), tuple(prompt(5))
    ids, found = [one.add(PROMPT, SamplingParams(max_tokens=NEW))], {}
    for step in range(2 * NEW):
        if step == 7:
            ids.append(one.add(other, SamplingParams(max_tokens=6)))
        for event in one.step():
            found.setdefault(event.request_id, []).append(event.token)
    assert tuple(found[ids[0]]) == oracle("zamba2", PROMPT, NEW)
    assert tuple(found[ids[1]]) == oracle("zamba2", other, 6)
    assert len(alone) == NEW - 1 - 6, "alone before and after, and while the other was there they went together"


def test_who_stays_behind_moves_to_the_first_slot_and_goes_on(alone):
    one, other = engine(), tuple(prompt(5))
    first, second = one.add(other, SamplingParams(max_tokens=6)), one.add(PROMPT, SamplingParams(max_tokens=NEW))
    done = one.run()
    assert done[first].ids == oracle("zamba2", other, 6) and done[second].ids == oracle("zamba2", PROMPT, NEW)
    assert len(alone) == NEW - 6
