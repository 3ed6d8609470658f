"""What is done to a model before it writes: adapters merged on a GPU with room for them, constants kept, and both undone."""

import pytest
import torch

from tests.model.tiny import CONFIGS
from zamba_lm.model.merge import link_bytes, merged_bytes
from zamba_lm.model.ready import SPARE, for_training, ready
from zamba_lm.model.zamba import Zamba

NAME = next(name for name, config in CONFIGS.items() if config.adapter_rank)


def made():
    return Zamba(CONFIGS[NAME], dtype=torch.float32).init_weights(4).requires_grad_(False)


def merged(model):
    """What every call has of its own."""
    return set().union(*(layer.merged for layer in model.layers if layer.plan.hybrid))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if the model lay on a GPU with so many bytes free."""

    def free(number):
        monkeypatch.setattr(Zamba, "device", torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (number, 2 * number))

    return free


@pytest.mark.parametrize(("links", "adapters"), [(1.01, 1.01), (1.01, 0.99), (1.01, 0), (0.99, 0)])
def test_products_are_made_where_they_take_a_small_part_of_what_is_free(links, adapters, on_a_gpu):
    model = made()
    on_a_gpu(int((links * link_bytes(model) + adapters * merged_bytes(model)) / SPARE))
    made_of = merged(ready(model))
    assert ("link" in made_of, "gate_up" in made_of) == (links > 1, adapters > 1)
    assert not merged(for_training(model))


def test_adapters_stay_shared_on_request_and_on_a_cpu(on_a_gpu):
    assert not merged(ready(made()))
    on_a_gpu(10**12)
    assert not merged(ready(made(), merge=False))


def test_constants_are_kept_until_training():
    model = ready(made())
    assert all(layer.mixer.frozen is not None for layer in model.layers)
    assert all(layer.mixer.frozen is None for layer in for_training(model).layers)
