"""What one of two processes does: run the cases on its share, and write down what came out."""

import contextlib
import io
from dataclasses import replace

import torch
import torch.distributed as dist

from tests.engine import tiny as chat
from tests.model import tiny
from tests.numerics.tolerances import excess
from zamba_lm.engine.engine import Engine
from zamba_lm.engine.request import SamplingParams
from zamba_lm.engine.runner import Runner
from zamba_lm.errors import ZambaError
from zamba_lm.ops.gpu import interpreted
from zamba_lm.parallel import join, leave, load_parallel, random_parallel, tensor_parallel
from zamba_lm.parallel.direct import BLOCK, ROWS, Direct
from zamba_lm.parallel.total import total_reference, with_square_reference

EVERYTHING = tiny.CONFIGS["zamba2, everything"]
PARAMS = (
    SamplingParams(max_tokens=6),
    SamplingParams(max_tokens=5, temperature=0.9, seed=3),
    SamplingParams(max_tokens=4, repetition_penalty=1.3),
)
FREE = SamplingParams(max_tokens=12, temperature=1.5)  # draws its own seed
WIDTHS = (40, 600)  # of the rows that are summed directly: one program a row, and two


def main(rank: int, size: int, folder: str, inboxes) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # as processes are: not seeded alike
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    ranks, device = join("cpu")
    found = {
        "rank": (ranks.rank, ranks.size, str(device)),
        "engine": engine(),
        "free": free(),
        "loaded": loaded(f"{folder}/model"),
    }
    found |= {"refused": refused(), "direct": [direct(rank, inboxes, width) for width in WIDTHS]}
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


def rowwise(model, pool):
    return Runner(model, pool, capture=False)


def tokens(model, params, runner=None):
    """What several requests are answered with."""
    kitchen = Engine(model, max_batch=3, prefill_tokens=17, runner=runner)
    for n, one in enumerate(params):
        kitchen.add(chat.prompt(1 + 9 * n, n), one)
    return [done.ids for done in kitchen.run().values()]


def engine():
    """Tokens by passes and by rows, of the whole model and of the split one."""
    found = {}
    for family in ("zamba2", "zamba"):
        whole = chat.model(family)
        split = tensor_parallel(whole)
        expected = tokens(whole, PARAMS * 2)
        found[family] = (
            expected,
            tokens(split, PARAMS * 2),
            tokens(split, PARAMS * 2, rowwise),
            split.logits(tiny.text(70)[None]),
        )
    return found


def free():
    """Requests without a seed, which draw one."""
    return tokens(tensor_parallel(chat.model()), (FREE,) * 3)


def loaded(folder: str):
    whole = tiny.random_model(EVERYTHING, seed=7)
    if dist.get_rank() == 0:
        whole.save(folder)
    dist.barrier()
    ours, cut = load_parallel(folder, device="cpu", dtype="float32"), tensor_parallel(whole)
    narrow = load_parallel(folder, device="cpu", dtype="bfloat16", overrides={"max_positions": 99})
    same = [torch.equal(a, b) for a, b in zip(ours.parameters(), cut.parameters(), strict=True)]
    return all(same), narrow.dtype, narrow.config.max_positions


def refused() -> dict[str, str]:
    """What is said of that which cannot be."""
    plain = tiny.CONFIGS["zamba2, plain"]
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    attempts = {
        "heads": lambda: random_parallel(replace(plain, n_ssm_heads=1)),
        "group": lambda: tensor_parallel(tiny.random_model(plain), alone[1 - dist.get_rank()]),
        "device": lambda: join("cuda"),
    }
    said = {}
    for name, attempt in attempts.items():
        with contextlib.redirect_stderr(io.StringIO()):  # torch warns of the group before we do
            try:
                attempt()
            except ZambaError as error:
                said[name] = str(error)
    return said


def direct(rank: int, inboxes, width: int) -> float:
    """The kernel that writes into the others' memory, interpreted, beside the reference: by how much the worst number is out of
    tolerance. One exchange follows another through the same inbox."""
    programs = ROWS * -(-width // BLOCK)
    inboxes[rank].zero_()
    dist.barrier()
    addresses = torch.tensor([inbox.data_ptr() for inbox in inboxes])
    mine = Direct(rank, len(inboxes), width, inboxes[rank], addresses, torch.zeros(programs, dtype=torch.int32), None)
    worst = -1.0
    for n, (T, span, gated) in enumerate([(1, 1, False), (3, 2, False), (1, 2, True), (2, 1, False), (1, 2, False)]):
        generator = torch.Generator().manual_seed(n)
        residual, *parts = torch.randn(1 + len(inboxes), T, width, generator=generator).bfloat16()
        y_RTI = torch.randn(len(inboxes), T, 24, generator=generator) * torch.tensor([1, 3])[:, None, None]
        z_RTI = torch.randn(len(inboxes), T, 24, generator=generator) if gated else [None] * len(inboxes)
        rows = [with_square_reference(*one) for one in zip(parts, y_RTI, z_RTI)] if span > 1 else parts
        expected = total_reference(torch.stack(rows), residual, width, span, 1e-5)
        with interpreted():
            actual = mine.total(parts[rank], residual, y_TI=y_RTI[rank], z_TI=z_RTI[rank], span=span, eps=1e-5)
        worst = max(worst, excess("op", actual, expected))
    dist.barrier()
    return worst
