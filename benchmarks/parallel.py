"""Decoding and reading on one GPU and on several, random bfloat16 weights of the published shapes.

    torchrun --nproc-per-node 2 benchmarks/parallel.py --preset zamba2-2.7b --batch 1,32 --context 512 --prompt 2048

Every rank also measures the whole model on its own GPU first, so both columns come from one run; the two are compared before
anything is timed. ``--direct``: sum few rows by writing into each other's memory (docs/parallel.md). Medians of five.
"""

import argparse
import statistics
import time

import torch

from zamba_lm.engine.engine import Engine
from zamba_lm.engine.request import SamplingParams
from zamba_lm.engine.runner import Runner
from zamba_lm.model.batch import Batch
from zamba_lm.model.presets import preset
from zamba_lm.model.zamba import Zamba
from zamba_lm.parallel import Ranks, join, random_parallel

REPEATS, STEPS = 5, 20
FURTHEST = 5e-2  # root of the mean square difference of bfloat16 logits, by their spread, beyond which nothing is timed


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(5, 30000, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def decode(model: Zamba, batch: int, context: int) -> float:
    """Milliseconds a step, with the engine around it."""
    engine = Engine(model, max_batch=batch, runner=Runner)
    for row in range(batch):
        engine.add(ids(context, row), SamplingParams(max_tokens=8 * STEPS + batch * context // 2048 + 8))
    while len(engine.pool.decoding) < batch:
        engine.step()
    times = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(STEPS):
            engine.step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / STEPS * 1e3)
    return statistics.median(times[1:])


def first_token(model: Zamba, length: int) -> float:
    """Milliseconds from a prompt to its first token."""
    engine, times = Engine(model, max_batch=1, runner=Runner), []
    for repeat in range(REPEATS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        engine.add(ids(length, repeat), SamplingParams(max_tokens=1))
        engine.run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def measure(model: Zamba, batches: list[int], context: int, prompt: int) -> dict[str, float]:
    found = {f"decode, batch {batch}, context {context}": decode(model, batch, context) for batch in batches}
    return found | {f"first token, prompt {prompt}": first_token(model, prompt)}


@torch.inference_mode()
def logits(model: Zamba) -> torch.Tensor:
    return model(Batch.pack([ids(64)], device=model.device))


def agreement(ranks: Ranks, whole: torch.Tensor, split: torch.Tensor) -> str:
    """How the split model's logits stand to the whole one's. SystemExit when they are too far apart."""
    everybody = ranks.gather(split)
    alike = bool((everybody == everybody[:1]).all())
    apart = ((split - whole).square().mean().sqrt() / whole.std()).item()
    if not (alike and apart <= FURTHEST):
        raise SystemExit(f"not timed: logits differ by {apart:.2g} of their spread (at most {FURTHEST}), alike on ranks: {alike}")
    return f"logits {apart:.2g} of their spread from one GPU's, alike on all ranks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="zamba2-2.7b")
    parser.add_argument("--batch", default="1,32", help="sequences that decode together, several with commas")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--direct", action="store_true")
    given = parser.parse_args()
    ranks, here = join("cuda")
    config, sizes = preset(given.preset), ([int(n) for n in given.batch.split(",")], given.context, given.prompt)
    model = Zamba(config, device=here, dtype=torch.bfloat16).init_weights(0).requires_grad_(False)
    expected, alone = logits(model), measure(model, *sizes)
    del model
    torch.cuda.empty_cache()
    model = random_parallel(config, 0, device=here, dtype=torch.bfloat16)
    if given.direct:
        model.open_direct()
    agreed, together = agreement(ranks, expected, logits(model)), measure(model, *sizes)
    if ranks.rank == 0:
        way = "direct" if given.direct else "NCCL"
        print(f"{given.preset}, {torch.cuda.get_device_name()}, torch {torch.__version__}, {way}; {agreed}")
        print(f"\n| case | 1 GPU, ms | {ranks.size} GPUs, ms | faster |\n|---|---|---|---|")
        for case, one in alone.items():
            print(f"| {case} | {one:.2f} | {together[case]:.2f} | {one / together[case]:.2f} x |")


if __name__ == "__main__":
    main()
