"""The table of kernels in little time: everything is compiled by many processes first, then measured in short rounds."""

import multiprocessing
import time

import torch

from zamba_lm.eval.bench.kernels import Plan, Size, sizes, touched
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.model.config import ZambaConfig

ROUND = 0.01  # seconds
PATIENCE = 75  # seconds: what is not compiled then is compiled when it is measured
CONTEXT = {"cuda": 4096, "cpu": 32}


def quick_plan(config: ZambaConfig, device: torch.device, roof: Roof, rounds: int) -> Plan:
    """All kernels of a shape at one length, for one row and for 32; references only where nothing else runs."""
    return Plan(
        config=config,
        dtype="bfloat16",
        device=device,
        roof=roof,
        batches=(1, 32),
        contexts=(CONTEXT[device.type],),
        repeats=rounds,
        references=device.type != "cuda",
        least=ROUND,
    )


def warm(work: list[tuple[Plan, Size]], workers: int) -> None:
    """Call everything once, in ``workers`` new processes, which leave what they compiled in Triton's cache."""
    end = time.monotonic() + PATIENCE
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        jobs = [pool.apply_async(_touch, (plan, [case.name, rows, tokens])) for plan, (case, rows, tokens) in work]
        for job in jobs:
            job.wait(max(0.0, end - time.monotonic()))


def _touch(plan: Plan, size: list) -> None:
    name, rows, tokens = size  # a case holds functions, which do not travel
    case = next(case for case, *_ in sizes(plan) if case.name == name)
    touched(plan, case, rows, tokens)
