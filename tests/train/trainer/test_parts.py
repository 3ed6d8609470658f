"""The pieces of the trainer, one by one."""

import errno
import math
import os
import signal

import pytest
import torch

from tests.model.tiny import CONFIGS
from tests.train.trainer.small import ROW, Counted, feed
from zamba_lm.errors import ZambaError
from zamba_lm.train.data import collate
from zamba_lm.train.trainer import checkpoints, progress
from zamba_lm.train.trainer.feed import Feed, Phase
from zamba_lm.train.trainer.guard import Guard
from zamba_lm.train.trainer.journal import Journal, read
from zamba_lm.train.trainer.peaks import peak_flops
from zamba_lm.train.trainer.schedules import schedule
from zamba_lm.train.trainer.screen import screen
from zamba_lm.train.trainer.signals import StopRequest
from zamba_lm.train.trainer.zamba_trainer import Operations

CPU = torch.device("cpu")

# schedules


def test_cosine_warms_up_and_ends_at_its_floor():
    rate = schedule("cosine", steps=1000, warmup=100, floor=0.25)
    assert [rate(0), rate(49), rate(99), rate(100)] == [0.01, 0.5, 1.0, 1.0]
    assert rate(550) == pytest.approx(0.25 + 0.75 / 2) and rate(1000) == pytest.approx(0.25)


def test_linear_falls_from_where_it_is_told_as_the_first_pebble_did():
    rate = schedule("linear", steps=1000, warmup=10, floor=0.0, decay_from=0.4)
    for step in (10, 399, 400, 700, 999):
        assert rate(step) == pytest.approx(min(1.0, (1 - step / 1000) / (1 - 0.4)))


def test_exponential_is_the_published_formula():
    peak, end, gamma, steps = 1.1e-4, 1e-7, 0.25, 400
    a = (peak - end) / (1 - math.exp(-1 / gamma))
    b = peak - a
    rate = schedule("exponential", steps=steps, warmup=0, floor=end / peak, gamma=gamma)
    for t in (0, 1, 100, 399, 400):
        assert peak * rate(t) == pytest.approx(a * math.exp(-t / (gamma * steps)) + b, rel=1e-9)
    assert peak * rate(400) == pytest.approx(end)


def test_constant_and_unknown():
    assert schedule("constant", steps=9, warmup=0, floor=0.1)(8) == 1.0
    with pytest.raises(ZambaError, match=r"unknown schedule 'cosin' \(did you mean cosine\?\)"):
        schedule("cosin", steps=9, warmup=0, floor=0.1)


# checkpoints


def written(run, step):
    folder = checkpoints.staged(run, step)
    folder.mkdir(parents=True)
    (folder / "model").write_text(str(step))
    return checkpoints.commit(run, step)


def test_only_what_was_committed_is_found(tmp_path):
    for step in (9, 10, 100):
        written(tmp_path, step)
    checkpoints.staged(tmp_path, 200).mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert [path.name for path in checkpoints.found(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert checkpoints.newest(tmp_path).name == "checkpoint-100" and checkpoints.newest(tmp_path / "none") is None


def test_a_removal_that_is_cut_off_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    written(tmp_path, 1), written(tmp_path, 2)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoints.prune(tmp_path, 1)
    assert [path.name for path in checkpoints.found(tmp_path)] == ["checkpoint-2"]
    monkeypatch.undo()
    assert checkpoints.sweep(tmp_path) == [".removing-checkpoint-1"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:815] . PytorchStreamWriter failed writing file data/1: No space left"),
        ZambaError("cannot write x: No space left on device"),
    ],
    ids=["os", "torch", "ours"],
)
def test_every_way_to_say_that_the_disk_is_full_becomes_one_line(tmp_path, error):
    with pytest.raises(ZambaError, match=r"^cannot save checkpoint-4 in .*No space left.*free there\)$") as caught:
        with checkpoints.disk_trouble("checkpoint-4", tmp_path / "checkpoint-4"):
            raise error
    assert "\n" not in str(caught.value)


def test_other_errors_are_no_disk_trouble(tmp_path):
    with pytest.raises(RuntimeError, match="shape mismatch"), checkpoints.disk_trouble("x", tmp_path):
        raise RuntimeError("shape mismatch")


def test_no_checkpoint_is_named_so(tmp_path):
    with pytest.raises(ZambaError, match="expected a folder called checkpoint-STEP"):
        checkpoints.step_of(tmp_path / "model")


# the log


def test_the_log_is_cut_back_with_a_torn_line(tmp_path):
    journal = Journal(tmp_path)
    for step in (1, 2, 3):
        journal.write({"step": step, "loss": float("nan") if step == 2 else 1.0})
    with journal.path.open("a") as file:
        file.write('{"step": 4, "lo')
    journal.cut(2)
    assert read(journal.path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}]
    journal.write({"step": 3})
    assert [entry["step"] for entry in read(journal.path)] == [1, 2, 3]


# batches


def test_the_place_is_that_of_the_batches_taken(tmp_path):
    """Several are read ahead; the state knows only those that were asked for."""
    first = feed(ahead=3)
    batches = iter(first)
    taken = [next(batches)["input_ids"] for _ in range(4)]
    state = first.state_dict()
    first.close()
    assert state == {"phase": 0, "taken": 4, "at_a_time": 2, "stream": {"next": 8}} and taken[0].shape == (2, ROW)
    second = feed()
    second.load_state_dict(state)
    rows = Counted()
    rows.load_state_dict({"next": 8})
    expected = collate([row for row, _ in zip(rows, range(2))])
    found = next(iter(second))
    second.close()
    assert torch.equal(found["input_ids"], expected["input_ids"]) and found["lengths"] == expected["lengths"]


def phases():
    return Feed([Phase(Counted(), 4, batches=3), Phase(Counted(48), 2, batches=None)], collate, device=CPU)


def test_phases_follow_each_other_and_are_resumed_within():
    whole = phases()
    batches = [batch["input_ids"].shape for _, batch in zip(range(5), whole)]
    whole.close()
    assert batches == [(4, ROW)] * 3 + [(2, 48)] * 2
    for taken in (2, 3, 4):
        part, again = phases(), phases()
        before = [batch["input_ids"] for _, batch in zip(range(taken), part)]
        again.load_state_dict(part.state_dict())
        after = [batch["input_ids"] for _, batch in zip(range(5 - taken), again)]
        part.close(), again.close()
        assert [tuple(ids.shape) for ids in before + after] == [tuple(shape) for shape in batches]


def test_trouble_in_the_thread_is_told_where_the_batch_is_wanted():
    class Broken(Counted):
        def __iter__(self):
            yield from (row for row, _ in zip(super().__iter__(), range(2)))
            raise ZambaError("row 2 is damaged")

    broken = Feed([Phase(Broken(), 2)], collate, device=CPU)
    batches = iter(broken)
    next(batches)
    with pytest.raises(ZambaError, match="row 2 is damaged"):
        next(batches)
    broken.close()


# the guard


def test_an_optimizer_that_cannot_leave_a_step_out_loses_its_gradients():
    p = torch.nn.Parameter(torch.ones(3))
    plain, guard = torch.optim.AdamW([p], lr=0.1), Guard(5, CPU)
    for step, value in enumerate((1.0, float("inf"), 1.0), 1):
        p.grad = torch.full((3,), value)
        before = p.detach().clone()
        guard.see_gradient(p.grad.norm(), plain, step)
        plain.step()
        assert torch.equal(p, before) == (value == float("inf"))
        plain.zero_grad()
    assert guard.counted() == {"skipped": 1, "row": 0, "last": 2, "bad_losses": 0}


def test_counts_survive_saving():
    guard, other = Guard(5, CPU), Guard(5, CPU)
    p = torch.nn.Parameter(torch.ones(1))
    for step in (1, 2):
        guard.see_loss(torch.tensor(float("nan")))
        guard.see_gradient(torch.tensor(1.0), torch.optim.SGD([p], lr=0.1), step)
    other.load(guard.counted())
    assert other.counted() == {"skipped": 2, "row": 2, "last": 2, "bad_losses": 2}


# signals


def test_the_first_signal_is_heard_and_the_second_ends():
    stop, before = StopRequest(), signal.getsignal(signal.SIGINT)
    with stop.listening():
        assert stop.agreed(CPU) == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed(CPU) == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# speed


def test_the_pace_leaves_pauses_out_and_the_time_left_does_not():
    clock = iter([0, 0, 2, 8, 10, 20]).__next__  # made, begun, pause from 2 to 8, looked at 10 and 20
    pace = progress.Pace(CPU, peak=100.0, now=clock)
    pace.begin(0, 0, 0)
    with pace.pause():
        pass
    assert pace.look(2, 10, 400, 800, 2) == {"tokens_per_s": 100.0, "seconds": 10, "seconds_left": 40.0, "mfu": 1.0}
    assert pace.look(4, 10, 600, 800, 2) == {"tokens_per_s": 20.0, "seconds": 20, "seconds_left": 30.0}


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (89, "89 s"), (100, "2 min"), (7200, "2 h 00"), (11100, "3 h 05"), (190000, "2 d 4 h")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Abacus", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert peak_flops(name) == peak


@pytest.mark.parametrize("name", ["zamba", "zamba2, everything"])
def test_operations_are_those_of_the_config(name):
    config = CONFIGS[name]
    assert Operations(config)((7, 1, 300)) == sum(config.flops(n, training=True) for n in (7, 1, 300))


def test_outside_the_main_thread_there_is_nothing_to_hear():
    from threading import Thread

    heard = []

    def listen():
        with StopRequest().listening():
            heard.append(True)

    thread = Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [True]


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = screen(speaks=True)
    shown.show({"step": 2, "loss": 1.25, "seconds_left": 30.0}, 10)
    shown.show({"step": 2, "eval_bpb_web": 1.5, "eval_bpb_web/wiki": 1.25}, 10)
    shown.say("a message")
    shown.close()
    told = capsys.readouterr().err
    assert "step 2/10  loss 1.2500  30 s left" in told and "step 2/10  bpb_web 1.5000\n" in told and "a message" in told
    quiet = screen(speaks=False)
    quiet.show({"step": 1}, 2), quiet.say("x"), quiet.close()
    assert capsys.readouterr().err == ""


def test_a_feed_goes_on_with_another_number_of_processes():
    """The first phase ends behind the same row: 8 rows are 4 batches of one process, 2 of each of two."""
    one = Feed([Phase(Counted(), 2, 4, 1), Phase(Counted(), 2, None, 1)], collate, device=torch.device("cpu"))
    batches = iter(one)
    [next(batches) for _ in range(2)]
    place = one.state_dict()
    one.close()
    assert place["taken"] == 2 and place["at_a_time"] == 2
    two = Feed([Phase(Counted(), 2, 2, 2), Phase(Counted(), 2, None, 2)], collate, device=torch.device("cpu"))
    two.load_state_dict(place)
    batches = iter(two)
    phases = []
    for _ in range(3):
        next(batches)
        phases.append((two.state_dict()["phase"], two.state_dict()["taken"]))
    two.close()
    assert phases == [(0, 2), (1, 1), (1, 2)]
