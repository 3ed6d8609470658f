"""Signals, full disks, settings that cannot be, checkpoints that are damaged."""

import json

import pytest
import torch

from tests.model.tiny import CONFIGS, random_model
from tests.train.scale.played import played
from zamba_lm.errors import ZambaError
from zamba_lm.model.config_write import to_dict
from zamba_lm.train import optim
from zamba_lm.train.recipes import resolve
from zamba_lm.train.recipes.base import Scale
from zamba_lm.train.recipes.lora_sft import Config as LoraSft
from zamba_lm.train.recipes.pretrain import Config as Pretrain
from zamba_lm.train.scale import stored
from zamba_lm.train.scale.mesh import check, pieces_of, readers, refuse


def test_a_signal_and_a_full_disk_lose_nothing(tmp_path):
    told = played("scenes", "trouble", str(tmp_path))
    assert ".saving-checkpoint-3" in told["beside"] and "checkpoint-3" not in told["beside"]  # training went on beside it
    assert told["told"] == [143, 143] and f"checkpoint-{told['step']}" in told["saved"]
    assert told["full"] == [1, 1] and told["left"] == told["saved"]
    assert "ZambaError: cannot save checkpoint-9 in " in told["said"]
    assert told["again"] == [0, 0] and "checkpoint-9" in told["end"] and "model" in told["end"]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("scale.shard=fdsp", "scale.shard is 'fdsp', expected one of none, fsdp"),
        ("scale.shard=tensor", "for tensor parallel set scale.tensor to a number of devices"),
        ("scale.tensor=0", "scale.tensor is 0, expected at least 1"),
        ("scale.keep=layers", "scale.keep is 'layers', expected one of none, blocks, all"),
        ("scale.replicas=0", "scale.replicas is 0, expected at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(pair, message):
    with pytest.raises(ZambaError, match=message):
        check(resolve.resolve(Pretrain(), {}, [pair]).scale)


def test_copies_must_divide_the_processes():
    assert pieces_of(Scale(shard="fsdp", replicas=2), 8) == 4 and pieces_of(Scale(), 8) == 1
    for replicas in (3, 8):
        with pytest.raises(ZambaError, match=rf"scale.replicas is {replicas} and there are 8 processes"):
            pieces_of(Scale(shard="fsdp", replicas=replicas), 8)


def test_shares_must_divide_the_processes():
    assert pieces_of(Scale(shard="fsdp", tensor=2), 8) == 4 and pieces_of(Scale(shard="fsdp", tensor=8), 8) == 1
    with pytest.raises(ZambaError, match="scale.tensor is 3, which does not divide the number of processes, 8: start a multiple"):
        readers(Scale(tensor=3), 8)


def test_adapters_refuse_split_layers_and_four_bits_refuse_pieces():
    config = resolve.resolve(LoraSft(), {}, ["scale.tensor=2"])
    with pytest.raises(ZambaError, match=r"scale.tensor=2 is there for .*; lora-sft spreads its model with scale.shard=fsdp"):
        refuse(config, nf4=False, layers=False)
    config = resolve.resolve(LoraSft(), {}, ["scale.shard=fsdp"])
    refuse(config, nf4=False, layers=False)
    with pytest.raises(ZambaError, match="four-bit weights lie whole on each device, and scale.shard is fsdp"):
        refuse(config, nf4=True, layers=False)


def test_muon_refuses_matrices_that_are_cut():
    config = resolve.resolve(Pretrain(), {}, ["scale.tensor=2", "optim.name=muon"])
    with pytest.raises(ZambaError, match="muon needs whole matrices, and scale.tensor cuts them"):
        refuse(config, nf4=False, layers=True)


@pytest.fixture
def saved(tmp_path):
    """A model, its optimizer after a step, and a checkpoint of both."""
    zamba = random_model(CONFIGS["zamba2, everything"]).requires_grad_(True)
    optimizer = optim.build(zamba, "muon", lr=1e-2)
    zamba.logits(torch.arange(1, 9)[None]).square().mean().backward()
    optimizer.step()
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(zamba.config)))
    saving = stored.Saving(stored.weights(zamba) | stored.moments(zamba, optimizer), folder, None, lambda: None)
    assert saving.wait() is None
    return zamba, optimizer, folder


def test_weights_and_moments_come_back(saved):
    zamba, optimizer, folder = saved
    other = random_model(zamba.config, seed=3).requires_grad_(True)
    fresh = optim.build(other, "muon", lr=1e-2)
    stored.read_weights(other, folder)
    stored.read_moments(other, fresh, folder)
    assert all(torch.equal(p, q) for p, q in zip(zamba.parameters(), other.parameters()))
    for p, q in zip(zamba.parameters(), other.parameters()):
        assert optimizer.state[p].keys() == fresh.state[q].keys()
        assert all(torch.equal(one, fresh.state[q][key]) for key, one in optimizer.state[p].items())


def test_what_is_saved_is_what_was_there_when_saving_began(saved, tmp_path):
    zamba, _, _ = saved
    before = [p.detach().clone() for p in zamba.parameters()]
    saving = stored.Saving(stored.weights(zamba), tmp_path / "later", None, lambda: None)
    with torch.no_grad():
        for p in zamba.parameters():
            p.zero_()
    assert saving.wait() is None
    (tmp_path / "later" / "config.json").write_text((saved[2] / "config.json").read_text())
    stored.read_weights(zamba, tmp_path / "later")
    assert all(torch.equal(p, q) for p, q in zip(zamba.parameters(), before))


def test_damaged_checkpoints_are_named(saved):
    zamba, optimizer, folder = saved
    with pytest.raises(
        ZambaError, match=r"checkpoint-1 holds another shape than this run: .*n_groups 2.* there, .*n_groups 1.* here"
    ):
        stored.read_weights(random_model(CONFIGS["zamba2, plain"]), folder)
    adam = optim.build(zamba, "adamw", lr=1e-2)
    with pytest.raises(ZambaError, match=r"pieces is damaged or of another run: .*optim\.exp_avg"):
        stored.read_moments(zamba, adam, folder)
    (folder / "pieces" / ".metadata").unlink()
    with pytest.raises(ZambaError, match=r"pieces lacks .metadata: the checkpoint is not complete; move .*checkpoint-1 away"):
        stored.read_weights(zamba, folder)
