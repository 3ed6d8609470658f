"""Two to four processes that share a model of a few thousand parameters; what came out, as JSON.

python -m tests.train.scale.steps
"""

import copy
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as fsdp
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.model.tiny import CONFIGS, random_model
from zamba_lm.hf import wrap
from zamba_lm.train.optim import orthogonal
from zamba_lm.train.recipes.base import Scale
from zamba_lm.train.scale.mesh import places_of
from zamba_lm.train.scale.pieces import by_matrix, norm, whole
from zamba_lm.train.scale.shares import share_of
from zamba_lm.train.scale.units import Spread

torch.set_num_threads(1)
CPU, SPREAD = torch.device("cpu"), Scale(shard="fsdp")
EVERYTHING = "zamba2, everything"
GATHER = fsdp.FSDPParamGroup.unshard


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
    spread, gathered = Spread(model, places_of(scale, CPU), bf16=bf16, keep=scale.keep), counted()
    for step in range(2):
        gathered.clear()
        model.zero_grad()
        plain.zero_grad()
        for micro in range(2):
            rows = [row(4 * step + 2 * micro + reader) for reader in range(dist.get_world_size() // scale.tensor)]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                model(**rows[dist.get_rank() // scale.tensor]).loss.backward()
                (sum(plain(**one).loss for one in rows) / len(rows)).backward()
        spread.end_step()
    right = dict(plain.named_parameters())
    errors = {name: error(gathered_grad(model, name, p), right[name].grad) for name, p in model.named_parameters()}
    return {
        "error": max(errors.values()), "gathered": dict(gathered),
        "dtypes": sorted({str(p.grad.dtype) for p in model.parameters()}),
        "spread": sorted(name for name, p in model.named_parameters() if isinstance(p.grad, DTensor)),
        "norm": error(norm_of(model), norm_of(plain)),
    }  # fmt: skip


def gathered_grad(model, name: str, p: torch.nn.Parameter) -> torch.Tensor:
    share, mine = share_of(p), whole(p.grad)
    return mine if share is None else share.gathered(name.removeprefix("zamba."), mine, model.zamba.config)


def norm_of(model) -> torch.Tensor:
    return norm([p.grad for p in model.parameters()], [share_of(p) for p in model.parameters()])


def row(number: int) -> dict:
    ids = torch.randint(1, 61, (1, 24), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "labels": ids, "lengths": (15, 9)}


def error(mine: torch.Tensor, right: torch.Tensor) -> float:
    return float((mine - right).abs().max() / right.abs().max().clamp(min=1e-12))


def counted() -> Counter:
    """From now on, how often each unit is gathered, by its name."""
    found = Counter()

    def unshard(self, *args, **kwargs):
        found[self._module_fqn or ""] += self._all_gather_result is None and not self.is_unsharded
        return GATHER(self, *args, **kwargs)

    fsdp.FSDPParamGroup.unshard = unshard
    return found


def two() -> dict:
    """In pieces: all kinds of models, recomputation of each kind, bfloat16, blocks that are let go or layers that are not."""
    cases = [(family, ()) for family in CONFIGS] + [(EVERYTHING, (part,)) for part in ("layers", "blocks", "mixers")]
    found = {" ".join((family, *parts)): gradients(family, parts) for family, parts in cases}
    kinds = {keep: gradients(EVERYTHING, scale=Scale(shard="fsdp", keep=keep)) for keep in ("none", "all")}
    return {"families": found, "kinds": kinds | {"bf16": gradients(EVERYTHING, bf16=True)}}


def four() -> dict:
    """Two copies of two pieces; layers split over two, all kinds of models, beside two copies or two pieces; over four, of which
    two norm together."""
    split, copies = Scale(tensor=2), gradients(EVERYTHING, scale=Scale(shard="fsdp", replicas=2))
    families = [family for family in CONFIGS if family != "zamba, odd shapes"]  # with one head
    found = {family: gradients(family, scale=split) for family in families}
    found["again"] = gradients(EVERYTHING, ("layers",), scale=split)
    found["bf16"] = gradients(EVERYTHING, bf16=True, scale=split)
    found["four"] = gradients(EVERYTHING, scale=Scale(tensor=4))
    found["pieces"] = gradients("zamba2, plain", scale=Scale(tensor=2, shard="fsdp"))
    return {"copies": copies, "split": found}


def three() -> dict:
    """Matrices of rows that do not divide, made orthogonal by whom they fall to, and their norm."""
    stacked = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0))
    mesh = places_of(SPREAD, CPU).pieces
    spread = [distribute_tensor(one, mesh, [Shard(0)]) for one in stacked]
    done = by_matrix(torch.stack([one.to_local() for one in spread]).bfloat16(), spread[0], orthogonal)
    first = 3 * dist.get_rank()
    right = orthogonal(stacked)[:, first : first + 3]
    same = norm([*spread, stacked]), norm([stacked] * 2)
    return {"rows": done.shape[1], "equal": torch.equal(done, right), "norm": error(*same)}


if __name__ == "__main__":
    print(json.dumps(together(two, 2)[0] | together(four, 4)[0] | {"ranks": together(three, 3)}))
