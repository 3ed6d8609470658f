"""The `zamba-lm bench` commands that measure what benchmarks/h200.py measures, one by one."""

from zamba_lm.eval.bench.cases import CASES, Case

SWEEP = tuple(512 * 4**n for n in range(5))  # 512 to 131072
SWEPT = ("zamba2-2.7b", "zamba-7b-v1")
KERNEL_PRESETS = ("zamba2-2.7b", "zamba-7b-v1", "zamba2-7b", "zamba2-1.2b")


def commands(folder: str) -> list[str]:
    """One command a case, then the kernels of each shape, then contexts of all lengths."""
    found = [_case_command(case, folder) for case in CASES]
    contexts = ",".join(map(str, SWEEP))
    for preset in KERNEL_PRESETS:
        file = f"{folder}/kernels-{preset}.json"
        found.append(f"zamba-lm bench kernels --preset {preset} --random --batch 1,32 --context 4096 --json {file}")
    for preset in SWEPT:
        file = f"{folder}/sweep-{preset}.json"
        found.append(
            f"zamba-lm bench decode --preset {preset} --random --context {contexts} --against transformers --json {file}"
        )
    return [*found, f"python benchmarks/dense.py --context {contexts} --json {folder}/sweep-mistral-7b.json"]


def _case_command(case: Case, folder: str) -> str:
    words = ["zamba-lm", "bench", case.kind, "--preset", case.preset, "--random", "--context", str(case.context)]
    words += ["--batch", str(case.batch)] * (case.kind != "start")
    words += ["--state-dtype", "bf16"] * (case.state == "bfloat16") + ["--recompute"] * case.recompute
    words += ["--against", "transformers"] * (case.state == "float32")
    return " ".join([*words, "--json", f"{folder}/{slug(case.name)}.json"])


def slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() or letter == "." else " " for letter in name).split())
