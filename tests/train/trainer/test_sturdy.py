"""One process: resuming, folders, the log, the guard, reports."""

import json
import re

import pytest
import torch

from tests.train.trainer.small import trainer
from zamba_lm.errors import ZambaError
from zamba_lm.model.load import load_model
from zamba_lm.train.trainer import checkpoints
from zamba_lm.train.trainer.journal import read
from zamba_lm.train.trainer.sturdy import Watch

HELD_OUT = {"old": lambda: {"": 1.5, "web": 2.5}}
NUMBERS = ("step", "loss", "grad_norm", "learning_rate", "tokens")


def numbers(run):
    return [{key: entry[key] for key in NUMBERS} for entry in read(run / "log.jsonl")]


def weights(a):
    return {name: p.detach().clone() for name, p in a.model.zamba.named_parameters()}


def stop_after(run, step):
    """The folder as it was when the checkpoint of ``step`` was the newest; the log has more than that."""
    for path in checkpoints.found(run):
        if checkpoints.step_of(path) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path, kind):
    """Also where the checkpoint (step 4) lies between two lines of the log (3 and 6)."""
    whole, part = trainer(tmp_path / "a", kind=kind), trainer(tmp_path / "b", kind=kind)
    whole.fit()
    part.fit()
    stop_after(tmp_path / "b", 4)
    again = trainer(tmp_path / "b", kind=kind)
    torch.manual_seed(99)
    again.fit(resume=True)
    assert numbers(tmp_path / "b") == numbers(tmp_path / "a") and [e["step"] for e in numbers(tmp_path / "b")] == [1, 3, 6]
    assert all(torch.equal(p, weights(again)[name]) for name, p in weights(whole).items())


def test_a_checkpoint_is_a_model(tmp_path):
    made = trainer(tmp_path / "a")
    made.fit()
    loaded = load_model(tmp_path / "a" / "checkpoint-8")
    assert loaded.dtype == torch.float32
    assert all(torch.equal(p, dict(loaded.named_parameters())[name]) for name, p in weights(made).items())


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_is_gone_on_from(tmp_path):
    """Cut short or missing, as by a copy that broke off."""
    trainer(tmp_path / "a").fit()
    newest = checkpoints.newest(tmp_path / "a")
    for name in ("scheduler.pt", "optimizer.pt", "sturdy.json"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[:-40])
        with pytest.raises(ZambaError, match=f"{newest.name} is damaged, {name} is missing or cut short: move the folder away"):
            trainer(tmp_path / "a", steps=10).fit(resume=True)
        (newest / name).write_bytes(whole)
    (newest / "scheduler.pt").unlink()
    with pytest.raises(ZambaError, match="scheduler.pt is missing"):
        trainer(tmp_path / "a", steps=10).fit(resume=True)
    newest.rename(tmp_path / "away")
    trainer(tmp_path / "a").fit(resume=True)
    assert checkpoints.newest(tmp_path / "a").name == newest.name


def test_a_used_folder_is_refused_without_resume(tmp_path):
    trainer(tmp_path / "a").fit()
    with pytest.raises(ZambaError, match=r"holds checkpoint-8 already; go on from it with --resume"):
        trainer(tmp_path / "a").fit()


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    trainer(tmp_path / "a", steps=4).fit()
    with pytest.raises(ZambaError, match=r"checkpoint-4 holds another shape .*: .*n_groups 2.* there, .*n_groups 1.* here"):
        trainer(tmp_path / "a", family="zamba2, plain").fit(resume=True)


def test_what_was_interrupted_is_taken_away(tmp_path, capsys):
    run = tmp_path / "a"
    for torn in (".saving-checkpoint-4", ".removing-checkpoint-2"):
        (run / torn).mkdir(parents=True)
        (run / torn / "model.safetensors").write_text("half")
    trainer(run, steps=1).fit(resume=True)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
    assert "saving-checkpoint-4 was interrupted and is taken away" in capsys.readouterr().err


def test_the_newest_checkpoints_stay(tmp_path):
    for keep, expected in ((1, [8]), (0, [2, 4, 6, 8])):
        trainer(tmp_path / str(keep), save_steps=2, watch=Watch(keep=keep)).fit()
        assert [checkpoints.step_of(path) for path in checkpoints.found(tmp_path / str(keep))] == expected


def test_the_log_tells_the_pace_and_the_place(tmp_path, capsys):
    trainer(
        tmp_path / "a",
        watch=Watch(peak_flops=1e9),
        held_out=HELD_OUT,
        eval_strategy="steps",
        eval_steps=4,
    ).fit()
    entries = read(tmp_path / "a" / "log.jsonl")
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["tokens"] for entry in steps] == [96 * entry["step"] for entry in steps]
    for key in ("tokens_per_s", "mfu", "memory_gib", "seconds", "seconds_left"):
        assert all(entry[key] >= 0 for entry in steps)
    measured = [entry for entry in entries if "eval_bpb_old" in entry]
    assert measured == [{"step": step, "eval_bpb_old": 1.5, "eval_bpb_old/web": 2.5} for step in (4, 8)]
    lines = capsys.readouterr().err.splitlines()
    assert re.match(
        r"step 3/8  loss 4\.\d+  \|g\| [\d.]+  lr [\d.e-]+  mfu [\d.]+%  [\d.]+ GiB  [\d.]+k? tok/s  \d+ s left", lines[1]
    )


def test_without_a_known_peak_no_mfu_is_told(tmp_path):
    trainer(tmp_path / "a", steps=3).fit()
    assert all("mfu" not in entry for entry in read(tmp_path / "a" / "log.jsonl"))


# the guard


def poison(made, at, what="loss"):
    """Make the loss or the gradient of these steps infinite."""
    step, forward = {"n": -1}, made.model.zamba.hidden
    embedding = made.model.zamba.embedding.weight

    def hidden(*args, **kwargs):
        step["n"] += 1
        bad = step["n"] // 2 + 1 in at
        found = forward(*args, **kwargs)
        return found * float("nan") if bad and what == "loss" else found

    def gradient(grad):
        return grad * float("inf") if step["n"] // 2 + 1 in at and what == "gradient" else grad

    made.model.zamba.hidden = hidden
    embedding.register_hook(gradient)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, what, kind):
    made, seen = trainer(tmp_path / "a", kind=kind, logging_steps=1), []
    poison(made, {4}, what)
    original = made._get_grad_norm

    def look(model, grad_norm=None):
        seen.append(weights(made))
        return original(model, grad_norm=grad_norm)

    made._get_grad_norm = look
    made.fit()
    before, after, later = seen[3], seen[4], seen[5]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(later[name], after[name]) for name in after)
    entries = [entry for entry in read(tmp_path / "a" / "log.jsonl") if "loss" in entry]
    assert [entry.get("skipped", 0) for entry in entries] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert (entries[3]["loss"] is None) == (what == "loss") and entries[4]["loss"] > 0
    saved = json.loads((tmp_path / "a" / "checkpoint-8" / "sturdy.json").read_text())
    assert saved["guard"]["skipped"] == 1 and saved["guard"]["last"] == 4


def test_the_mean_leaves_out_what_is_not_finite(tmp_path):
    calm, made = trainer(tmp_path / "a", logging_steps=1, steps=4), trainer(tmp_path / "b", logging_steps=4, steps=4)
    poison(calm, {4})
    poison(made, {4})
    calm.fit()
    made.fit()
    losses = [entry["loss"] for entry in read(tmp_path / "a" / "log.jsonl")]
    assert losses[3] is None
    assert read(tmp_path / "b" / "log.jsonl")[-1]["loss"] == pytest.approx(sum(losses[1:3]) / 2)


def test_too_many_in_a_row_end_the_run(tmp_path):
    made = trainer(tmp_path / "a", logging_steps=1, watch=Watch(stop_after=3))
    poison(made, {2, 4, 5, 6})
    with pytest.raises(ZambaError, match=r"the last 3 steps up to step 6 had a loss or gradient that is not finite"):
        made.fit()


# reports


def test_tensorboard_forgets_what_comes_after_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        trainer(tmp_path / "a", watch=Watch(tensorboard=True), logging_steps=1, held_out=HELD_OUT).fit(resume=True)
        stop_after(tmp_path / "a", 4)
    found = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not (tmp_path / "a" / "runs").exists()


def test_wandb_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.is_wandb_available", lambda: False)
    with pytest.raises(ZambaError, match="pip install wandb"):
        trainer(tmp_path / "a", watch=Watch(wandb=True)).fit()
