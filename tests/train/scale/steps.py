"""Two or four processes that share a model of a few thousand parameters; what came out, as JSON.

python -m tests.train.scale.steps SCENE
"""

import copy
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as fsdp
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.model.tiny import CONFIGS, random_model
from zamba_lm.hf import wrap
from zamba_lm.train.optim import orthogonal
from zamba_lm.train.recipes.base import Scale
from zamba_lm.train.scale.mesh import mesh_of
from zamba_lm.train.scale.pieces import by_matrix, norm, whole
from zamba_lm.train.scale.units import Spread

torch.set_num_threads(1)
CPU, SPREAD = torch.device("cpu"), Scale(shard="fsdp")


def together(work: Callable[[], dict], processes: int) -> list[dict]:
    """What ``work`` gives in each of some processes, which are forks of this one."""
    with tempfile.TemporaryDirectory() as place:
        pids = [_forked(work, Path(place), rank, processes) for rank in range(processes)]
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * processes
        return [json.loads((Path(place) / str(rank)).read_text()) for rank in range(processes)]


def _forked(work, place: Path, rank: int, processes: int) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=processes)
        (place / str(rank)).write_text(json.dumps(work()))
        code = 0
    finally:
        os._exit(code)


def gradients(family: str, recompute: tuple[str, ...] = (), *, bf16: bool = False, scale: Scale = SPREAD) -> dict:
    """Two micro-batches a step, two steps, beside a model in one piece: the largest error of a gradient by its largest number,
    how often each unit was gathered in the last step, and how the gradients lie."""
    model = wrap(random_model(CONFIGS[family]).requires_grad_(True))
    plain = copy.deepcopy(model)
    model.zamba.recompute(*recompute)
    spread, gathered = Spread(model, mesh_of(scale, CPU), bf16=bf16, keep=scale.keep), counted()
    for step in range(2):
        gathered.clear()
        model.zero_grad()
        plain.zero_grad()
        for micro in range(2):
            rows = [row(4 * step + 2 * micro + rank) for rank in range(dist.get_world_size())]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                model(**rows[dist.get_rank()]).loss.backward()
                (sum(plain(**one).loss for one in rows) / len(rows)).backward()
        spread.end_step()
    errors = {name: error(p.grad, q.grad) for (name, p), q in zip(model.named_parameters(), plain.parameters())}
    return {
        "error": max(errors.values()), "gathered": dict(gathered),
        "dtypes": sorted({str(p.grad.dtype) for p in model.parameters()}),
        "spread": sorted(name for name, p in model.named_parameters() if isinstance(p.grad, DTensor)),
        "norm": error(norm([p.grad for p in model.parameters()]), norm([p.grad for p in plain.parameters()])),
    }  # fmt: skip


def row(number: int) -> dict:
    ids = torch.randint(1, 61, (1, 24), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "labels": ids, "lengths": (15, 9)}


def error(mine: torch.Tensor, right: torch.Tensor) -> float:
    return float((whole(mine) - right).abs().max() / right.abs().max().clamp(min=1e-12))


def counted() -> Counter:
    """From now on, how often each unit is gathered, by its name."""
    found, gather = Counter(), fsdp.FSDPParamGroup.unshard

    def unshard(self, *args, **kwargs):
        found[self._module_fqn or ""] += self._all_gather_result is None and not self.is_unsharded
        return gather(self, *args, **kwargs)

    fsdp.FSDPParamGroup.unshard = unshard
    return found


def families() -> dict:
    """All kinds of models, and recomputation of each kind."""
    cases = [(family, ()) for family in CONFIGS] + [("zamba2, everything", (part,)) for part in ("layers", "blocks", "mixers")]
    return {" ".join((family, *parts)): together(partial(gradients, family, parts), 2)[0] for family, parts in cases}


def kinds() -> dict:
    """bfloat16, blocks that are let go, two copies of two pieces each."""
    family = "zamba2, everything"
    free, copies = Scale(shard="fsdp", keep="none"), Scale(shard="fsdp", replicas=2)
    return {
        "bf16": together(lambda: gradients(family, bf16=True), 2)[0],
        "free": together(lambda: gradients(family, scale=free), 2)[0],
        "all": together(lambda: gradients(family, scale=Scale(shard="fsdp", keep="all")), 2)[0],
        "copies": together(lambda: gradients(family, scale=copies), 4)[0],
    }


def matrices() -> dict:
    """Three matrices of rows that do not divide, by three processes: made orthogonal by whom they fall to, and their norm."""

    def work() -> dict:
        stacked = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0))
        mesh = mesh_of(SPREAD, CPU)
        spread = [distribute_tensor(one, mesh, [Shard(0)]) for one in stacked]
        done = by_matrix(torch.stack([one.to_local() for one in spread]).bfloat16(), spread[0], orthogonal)
        first = 3 * dist.get_rank()
        right = orthogonal(stacked)[:, first : first + 3]
        return {
            "rows": done.shape[1],
            "equal": torch.equal(done, right),
            "norm": error(norm([*spread, stacked]), norm([stacked] * 2)),
        }

    return {"ranks": together(work, 3)}


if __name__ == "__main__":
    print(json.dumps({"families": families, "kinds": kinds, "matrices": matrices}[sys.argv[1]]()))
