"""Recipes as Ray Train jobs: Ray starts the processes and starts them anew when a machine is lost; the run goes on by itself.

    from zamba_lm.integrations.ray import torch_trainer

    torch_trainer("pretrain", ["preset=zamba2-2.7b", "out=/shared/runs/a", "scale.shard=fsdp", ...], workers=64).fit()

Ray is imported when a trainer is made (``pip install 'zamba-lm[ray]'``).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zamba_lm.errors import ZambaError


def torch_trainer(
    recipe: str,
    settings: Sequence[str],
    *,
    workers: int,
    use_gpu: bool = True,
    max_failures: int = 3,
    resources: Mapping[str, float] | None = None,
    storage: str | None = None,
) -> Any:
    """A ``ray.train.torch.TorchTrainer``; its ``fit()`` runs the recipe in ``workers`` processes, one a GPU.

    ``settings``: what ``zamba-lm train RECIPE --set`` takes. ``out`` and the data must lie where every machine sees them at the
    same path. A run folder that holds checkpoints is gone on with: so a job that Ray starts anew loses the steps since its last
    checkpoint at most, and goes on with another number of workers where ``scale.shard=fsdp``. ``max_failures``: how often Ray
    starts anew. ``resources``: of each worker, as Ray's ``resources_per_worker``; ``storage``: where Ray keeps its own notes.
    Ray is told the last line of the run's log, which is whole in OUT/log.jsonl; its result holds no metrics, since checkpoints
    stay in ``out``. ZambaError where Ray is missing and for settings that are wrong.
    """
    from zamba_lm.train.recipes.base import need
    from zamba_lm.train.recipes.start import prepare

    config, _ = prepare(recipe, list(settings), resume=False, write=False)
    need(config.out, "out", "/shared/runs/first")
    train, kind = _ray()
    return kind(
        work,
        train_loop_config={"recipe": recipe, "settings": list(settings)},
        scaling_config=train.ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker=dict(resources) if resources else None
        ),
        run_config=train.RunConfig(
            name=Path(config.out).name, storage_path=storage, failure_config=train.FailureConfig(max_failures=max_failures)
        ),
    )


def work(job: Mapping[str, Any]) -> None:
    """What every worker does. Ray has told torch about the other workers by then."""
    from zamba_lm.train.recipes import recipe
    from zamba_lm.train.recipes.start import prepare
    from zamba_lm.train.trainer.journal import FILE, read

    config, _ = prepare(job["recipe"], job["settings"], resume=True, write=True)
    recipe(job["recipe"]).run(config, resume=True)
    train, _ = _ray()
    train.report(read(Path(config.out) / FILE)[-1])


def _ray() -> tuple[Any, Any]:
    try:
        import ray.train as train
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ZambaError("Ray is not installed; pip install 'zamba-lm[ray]'") from error
    return train, TorchTrainer
