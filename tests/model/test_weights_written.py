"""Saving is complete or has not happened: full disks, kills, folders with something else in them."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.model.tiny_weights import ONE_BLOCK, TWO_BLOCKS, assert_same, poisoned, random_model, saved
from zamba_lm.errors import ZambaError
from zamba_lm.model import staging as staging_module
from zamba_lm.model.staging import Staging
from zamba_lm.model.weights import load_weights, save_weights

ROOT = Path(__file__).parents[2]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def reloads(folder, model):
    other = poisoned(model.config)
    load_weights(other, folder)
    assert_same(model, other)


def test_a_save_leaves_config_and_weights_and_nothing_else(tmp_path):
    saved(tmp_path / "deep" / "er")
    assert sorted(contents(tmp_path / "deep" / "er")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("before", "after"), [(20_000, 5_000_000), (5_000_000, 20_000), (20_000, 40_000), (5_000_000, 5_000_000)]
)
def test_saving_over_an_earlier_save_leaves_no_old_shard(tmp_path, before, after):
    saved(tmp_path, ONE_BLOCK, max_shard_bytes=before)
    (tmp_path / "README.md").write_text("mine")
    model = random_model(TWO_BLOCKS, seed=9)
    save_weights(model, tmp_path, max_shard_bytes=after)
    reloads(tmp_path, model)
    named = {path.name for path in tmp_path.glob("*.safetensors")}
    save_weights(model, tmp_path / "fresh", max_shard_bytes=after)
    assert named == {path.name for path in (tmp_path / "fresh").glob("*.safetensors")}
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_old_torch_file_is_not_left_beside_the_new_weights(tmp_path):
    model = saved(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    save_weights(model, tmp_path, max_shard_bytes=20_000)
    assert not (tmp_path / "pytorch_model.bin").exists()
    reloads(tmp_path, model)


def test_too_little_space_is_found_before_writing(tmp_path, monkeypatch):
    model = saved(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ZambaError, match=f"not enough space in {tmp_path}: 14[0-9]{{4}} bytes needed, 1000 free"):
        save_weights(model, tmp_path)
    with pytest.raises(ZambaError, match="not enough space"):
        save_weights(model, tmp_path / "new" / "folder")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("lasts", [1, 3, 6])
def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch, code, lasts):
    """The write after ``lasts`` others fails: the old checkpoint is there, the new one has left no trace."""
    old = saved(tmp_path, max_shard_bytes=40_000)
    before = contents(tmp_path)
    written = []

    def full(file, tensors):
        for _ in tensors:
            file.write(b"x" * 100)
            written.append(1)
            if len(written) > lasts:
                raise OSError(code, os.strerror(code))

    monkeypatch.setattr("zamba_lm.model.weights.write_file", full)
    with pytest.raises(ZambaError, match=f"not enough space in {tmp_path}: .* bytes needed, .* free"):
        save_weights(random_model(ONE_BLOCK, seed=2), tmp_path, max_shard_bytes=40_000)
    assert contents(tmp_path) == before
    with pytest.raises(ZambaError):
        save_weights(old, tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_a_really_full_device(tmp_path, monkeypatch):
    (tmp_path / (staging_module._MARK + "model.safetensors")).symlink_to("/dev/full")
    monkeypatch.setattr(Staging, "_clear", lambda self: None)
    with pytest.raises(ZambaError, match="not enough space"):
        saved(tmp_path)


def test_other_troubles_of_the_disk(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZambaError, match="cannot write to .*/file: "):
        saved(tmp_path / "file")
    with pytest.raises(ZambaError, match="cannot write to .*/file/below: Not a directory"):
        saved(tmp_path / "file" / "below")

    def denied(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(ZambaError, match="cannot write to .*: Permission denied"):
        saved(tmp_path / "denied")
    assert not (tmp_path / "denied").exists()


def test_an_interrupt_while_writing_removes_the_unfinished_files(tmp_path, monkeypatch):
    saved(tmp_path)
    before = contents(tmp_path)

    def interrupted(file, tensors):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("zamba_lm.model.weights.write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_weights(random_model(ONE_BLOCK, seed=2), tmp_path)
    assert contents(tmp_path) == before


SLOW_SAVE = """
import sys, time
from pathlib import Path
import torch
from tests.model.tiny_weights import ONE_BLOCK, random_model
from zamba_lm.model import weights
write = weights.write_file
def slow(file, tensors):
    write(file, tensors)
    file.flush()
    Path(sys.argv[1], "written").touch()
    time.sleep(60)
weights.write_file = slow
weights.save_weights(random_model(ONE_BLOCK, seed=5), Path(sys.argv[1]))
"""


def test_a_killed_save_leaves_the_old_checkpoint_and_the_next_one_tidies_up(tmp_path):
    old = saved(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", SLOW_SAVE, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "written").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".saving-model.safetensors").exists()  # it was killed in the middle
    reloads(tmp_path, old)
    new = random_model(ONE_BLOCK, seed=6)
    save_weights(new, tmp_path)
    reloads(tmp_path, new)
    assert not list(tmp_path.glob(".saving-*"))


@pytest.mark.parametrize(("before", "after"), [(40_000, 40_000), (20_000, 40_000), (40_000, 5_000_000), (5_000_000, 40_000)])
def test_a_kill_between_the_renames_never_leaves_a_mixture(tmp_path, monkeypatch, before, after):
    """Stop at each step of putting files in place: the folder holds the old weights, the new ones, or says it is incomplete."""
    new = random_model(ONE_BLOCK, seed=7)
    save_weights(new, tmp_path / "reference", max_shard_bytes=after)
    for stop in range(len(contents(tmp_path / "reference"))):
        folder = tmp_path / str(stop)
        old = saved(folder, ONE_BLOCK, max_shard_bytes=before)
        done = []

        def replace(source, target, done=done, stop=stop, real=os.replace):
            if len(done) >= stop:
                raise KeyboardInterrupt
            done.append(target)
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                save_weights(new, folder, max_shard_bytes=after)
        assert len(done) == stop
        try:
            found = poisoned(ONE_BLOCK)
            load_weights(found, folder)
        except ZambaError as error:
            assert before == after and "no index" in str(error)
        else:
            assert_same(found, new if torch.equal(found.norm.weight, new.norm.weight) else old)


def test_a_style_that_the_family_never_had(tmp_path):
    with pytest.raises(ZambaError, match="there is no 'gguf' config for zamba2"):
        saved(tmp_path / "x", style="gguf")
    with pytest.raises(ZambaError, match="unknown dtype 'int4'"):
        saved(tmp_path / "x", dtype="int4")
    assert not (tmp_path / "x").exists()
