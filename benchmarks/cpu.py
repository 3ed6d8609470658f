"""Decode, first token, memory and loading on a CPU, side by side with transformers on the same weights.

    python benchmarks/cpu.py zamba2-pebble zamba2-2.7b zamba-7b-v1:10 --write

Each case is a checkpoint folder (random weights of the published shape, made once, ``:10`` keeps the first ten layers) that
both sides load in processes of their own, in turn, several rounds. Greedy, bfloat16. Medians over rounds are printed; ``--write``
adds benchmarks/results/cpu-DATE.md. First the bfloat16 logits of both sides are held
against float32: no times are shown when ours are off by more than theirs.
"""

import argparse
import datetime
import json
import math
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

FIGURES = ("load_s", "first_s", "token_s", "peak_gb", "bare_gb")
PROMPT = [1, *((7919 * i) % 31000 + 500 for i in range(127))]  # 128 arbitrary ids


def worker(side: str, folder: str, new: int, threads: int) -> dict:
    """One measurement in this process: seconds to load, to the first token, per further token; peak memory."""
    import torch

    torch.set_num_threads(threads)
    bare = _memory("VmRSS")
    if side == "float32":
        return {"logits": _some_logits(_float32(folder))}
    load, step = {"zamba-lm": _ours, "transformers": _transformers}[side]
    start = time.perf_counter()
    model = load(folder)
    loaded = time.perf_counter() - start
    step(model, PROMPT[:8], 2)  # warm up
    first, rest, logits = step(model, PROMPT, new)
    memory = {"peak_gb": _memory("VmHWM") / 1e9, "bare_gb": bare / 1e9}
    return {"load_s": loaded, "first_s": first, "token_s": rest, "logits": logits} | memory


def _memory(what: str) -> int:
    """Bytes this process holds (VmRSS), or has held at most (VmHWM; getrusage would count what its parent held before it)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024


def _float32(folder: str):
    from zamba_lm import load_model

    return load_model(folder, device="cpu", dtype="float32").logits


def _some_logits(logits) -> list[float]:
    """After every prompt token, for every 64th id of the vocabulary."""
    import torch

    with torch.inference_mode():
        return logits(torch.tensor([PROMPT]))[0, :, ::64].float().flatten().tolist()


def _ours_load(folder: str):
    from zamba_lm import LLM

    llm = LLM(folder, device="cpu")
    assert llm.model is not None
    return llm


def _ours_step(llm, prompt: list[int], new: int):
    from zamba_lm import SamplingParams

    logits = _some_logits(llm.model.logits)
    marks = [time.perf_counter()]
    llm.engine.add(prompt, SamplingParams(max_tokens=new))
    while len(marks) < new + 1 and llm.engine.busy:
        marks += [time.perf_counter() for _ in llm.engine.step()]
    return _intervals(marks), logits


def _ours_timed(llm, prompt, new):
    (first, rest), logits = _ours_step(llm, prompt, new)
    return first, rest, logits


def _transformers_load(folder: str):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def _transformers_timed(model, prompt, new):
    import torch
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        def __init__(self):
            self.marks = []

        def put(self, value):
            self.marks.append(time.perf_counter())

        def end(self):
            pass

    ids, clock = torch.tensor([prompt]), Clock()
    with torch.inference_mode():
        logits = _some_logits(lambda ids: model(ids).logits)
        clock.marks = []
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, streamer=clock, eos_token_id=None)
    first, rest = _intervals(clock.marks)  # the first mark is the prompt itself, handed over before the first pass
    return first, rest, logits


def _intervals(marks: list[float]) -> tuple[float, float]:
    gaps = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    return gaps[0], statistics.median(gaps[1:]) if len(gaps) > 1 else float("nan")


_ours = (_ours_load, _ours_timed)
_transformers = (_transformers_load, _transformers_timed)


def make(case: str, where: Path) -> Path:
    """The folder of a case: the embedded model written plainly, or random weights of a preset."""
    import torch

    from zamba_lm.model.convert import convert
    from zamba_lm.model.presets import preset
    from zamba_lm.model.zamba import Zamba

    folder = where / case.replace(":", "-")
    if case == "zamba2-pebble":
        shutil.rmtree(folder, ignore_errors=True)  # of a package that may have held another model
        convert(case, folder, dtype="bf16")
    if (folder / "config.json").exists():
        return folder
    name, _, layers = case.partition(":")
    config = preset(name)
    if layers:
        config = replace(config, n_layers=int(layers), hybrid_layers=tuple(i for i in config.hybrid_layers if i < int(layers)))
    Zamba(config, dtype=torch.bfloat16).init_weights(0).save(folder)
    return folder


def measure(case: str, folder: Path, rounds: int, new: int, threads: int) -> dict:
    """Both sides in turn; medians a side, after their logits were found to agree."""
    sides: dict[str, list[dict]] = {"zamba-lm": [], "transformers": []}
    for _ in range(rounds):
        for side, found in sides.items():
            found.append(_run(side, folder, new, threads))
    exact = _run("float32", folder, new, threads)["logits"]
    errors = {side: _error(found[0]["logits"], exact) for side, found in sides.items()}
    if not errors["zamba-lm"] <= errors["transformers"]:
        raise SystemExit(f"{case}: bfloat16 logits are off by {errors} of their spread; no times are shown")
    medians = {side: {k: statistics.median(f[k] for f in found) for k in FIGURES} for side, found in sides.items()}
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e9
    return {"case": case, "weights_gb": size, "errors": errors, "read_s": _read_once(folder)} | medians


def _run(side: str, folder: Path, new: int, threads: int) -> dict:
    command = [sys.executable, __file__, "--worker", side, str(folder), str(new), str(threads)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def _error(logits: list[float], exact: list[float]) -> float:
    """Root mean square of the difference over the spread of the exact logits."""
    return math.dist(logits, exact) / len(exact) ** 0.5 / statistics.pstdev(exact)


def _read_once(folder: Path) -> float:
    """Seconds to read the weight files front to back into one buffer, as they are cached now."""
    buffer, start = bytearray(64 << 20), time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def table(results: list[dict]) -> str:
    lines = [
        "| case | weights GB | | load s (reading once) | first of 128 s | token ms | tokens/s | peak GB (torch alone) "
        "| bf16 error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        for side in ("zamba-lm", "transformers"):
            m = r[side]
            lines.append(
                f"| {r['case']} | {r['weights_gb']:.2f} | {side} | {m['load_s']:.2f} ({r['read_s']:.2f}) | {m['first_s']:.3f} "
                f"| {m['token_s'] * 1e3:.1f} | {1 / m['token_s']:.1f} | {m['peak_gb']:.2f} ({m['bare_gb']:.2f}) "
                f"| {r['errors'][side]:.4f} |"
            )
        o, t = r["zamba-lm"], r["transformers"]
        lines.append(
            f"| | | theirs / ours | {t['load_s'] / o['load_s']:.2f} | {t['first_s'] / o['first_s']:.2f} "
            f"| {t['token_s'] / o['token_s']:.2f} | | {t['peak_gb'] / o['peak_gb']:.2f} | |"
        )
    return "\n".join(lines)


def header(threads: int) -> str:
    import torch
    import transformers

    import zamba_lm

    where = sys.argv.index("--where") if "--where" in sys.argv else len(sys.argv)
    command = " ".join(
        ["python", "benchmarks/cpu.py", *sys.argv[1:where], *sys.argv[where + 2 :]]
    )  # a folder says nothing to others
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or "unknown"
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, zamba-lm {zamba_lm.__version__}"
    return (
        f"Measured {datetime.date.today()} at commit {commit} with `{command}`: {cpu}, "
        f"{threads} threads, Python {platform.python_version()}, {versions}. bfloat16, greedy, 128 prompt tokens, medians. "
        "Torch alone: a process that has imported it and loaded nothing. bf16 error: root mean square distance of the logits "
        "from float32's, over their spread."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["zamba2-pebble"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=32, help="tokens to decode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--where", type=Path, default=Path("/tmp/zamba-lm-bench"), help="folder for the checkpoints")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side, folder, new, threads = args.worker
        print(json.dumps(worker(side, folder, int(new), int(threads))))
        return
    results = [measure(case, make(case, args.where), args.rounds, args.new, args.threads) for case in args.cases]
    text = f"# On a CPU, beside transformers\n\n{header(args.threads)}\n\n{table(results)}\n"
    print(text)
    if args.write:
        (Path(__file__).parent / "results" / f"cpu-{datetime.date.today()}.md").write_text(text)


if __name__ == "__main__":
    main()
