"""Recipes as Ray jobs. Ray itself is no part of the tests: a stand-in does with the job what Ray does, in a thread."""

import sys
from dataclasses import dataclass, field
from threading import Thread
from types import ModuleType

import pytest

from tests.train.trainer.tiny import corpus, log
from zamba_lm.errors import ZambaError
from zamba_lm.integrations.ray import torch_trainer


@dataclass
class Given:
    """What a class of Ray was given."""

    values: dict = field(default_factory=dict)

    def __init__(self, *args, **values):
        self.args, self.values = args, values


class TorchTrainer(Given):
    reported: list = []

    def fit(self):
        """Ray runs the function in a thread of each worker's process."""
        failed = []

        def run():
            try:
                self.args[0](self.values["train_loop_config"])
            except BaseException as error:
                failed.append(error)

        thread = Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]


@pytest.fixture
def ray(monkeypatch):
    module, train, torch = (ModuleType(name) for name in ("ray", "ray.train", "ray.train.torch"))
    for name in ("ScalingConfig", "RunConfig", "FailureConfig"):
        setattr(train, name, type(name, (Given,), {}))
    TorchTrainer.reported = []
    train.report, torch.TorchTrainer, module.train, train.torch = TorchTrainer.reported.append, TorchTrainer, train, torch
    for one in (module, train, torch):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return TorchTrainer


def settings(tmp_path, steps=4):
    corpus(tmp_path)
    small = ["batch.row=32", "batch.rows=2", "batch.micro=1", f"batch.tokens={steps * 64}", "run.save_every=2"]
    return ["preset=tiny", f"out={tmp_path / 'run'}", f"data.sources.text={tmp_path / 'shards'}", *small]


def test_a_job_runs_the_recipe_and_goes_on_when_it_is_started_anew(tmp_path, ray):
    job = torch_trainer("pretrain", settings(tmp_path), workers=16, resources={"CPU": 8}, storage="/shared/ray")
    scaling, run = job.values["scaling_config"].values, job.values["run_config"].values
    assert scaling == {"num_workers": 16, "use_gpu": True, "resources_per_worker": {"CPU": 8}}
    assert run["name"] == "run" and run["storage_path"] == "/shared/ray" and run["failure_config"].values == {"max_failures": 3}
    job.fit()
    first = log(tmp_path / "run")
    assert [entry["step"] for entry in first] == [1, 2, 3, 4] and (tmp_path / "run" / "model").is_dir()
    assert ray.reported[-1]["step"] == 4
    for path in (tmp_path / "run" / "checkpoint-4").iterdir():
        path.unlink()
    (tmp_path / "run" / "checkpoint-4").rmdir()
    job.fit()
    assert log(tmp_path / "run") == first


def test_mistakes_are_told_before_ray_starts(tmp_path, ray):
    with pytest.raises(ZambaError, match=r"unknown key 'batch.rwos' \(did you mean batch.rows\?\)"):
        torch_trainer("pretrain", ["batch.rwos=3"], workers=2)
    with pytest.raises(ZambaError, match="out is not set"):
        torch_trainer("pretrain", ["preset=tiny"], workers=2)


def test_ray_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(ZambaError, match=r"Ray is not installed; pip install 'zamba-lm\[ray\]'"):
        torch_trainer("pretrain", ["preset=tiny", f"out={tmp_path}"], workers=2)
