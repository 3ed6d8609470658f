"""How the work is shared out among GPUs, and the `zamba-lm bench` commands that measure the same, one by one."""

from zamba_lm.eval.bench.cases import CASES, Case

SWEEP = tuple(512 * 4**n for n in range(5))  # 512 to 131072
SWEPT = ("zamba2-2.7b", "zamba-7b-v1")
DENSE = "mistral-7b"
KERNEL_PRESETS = ("zamba2-2.7b", "zamba-7b-v1", "zamba2-7b", "zamba2-1.2b")
SHARES = (  # parts and presets for each of four GPUs, all about as long
    ("ours,theirs", ("zamba2-2.7b",)),
    ("ours,theirs", ("zamba-7b-v1",)),
    ("dense,kernels", KERNEL_PRESETS),
    ("start,sweep", SWEPT),
)


def share_words(number: int) -> list[str]:
    """What benchmarks/h200.py has to be told for share ``number``, counted from 0."""
    parts, presets = SHARES[number]
    return ["--parts", parts, "--presets", ",".join(presets), "--name", f"share-{number}"]


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
    return [*found, f"python benchmarks/dense.py --context {contexts} --json {folder}/sweep-{DENSE}.json"]


def _case_command(case: Case, folder: str) -> str:
    words = ["zamba-lm", "bench", case.kind, "--preset", case.preset, "--random", "--context", str(case.context)]
    words += ["--batch", str(case.batch)] * (case.kind != "start")
    words += ["--state-dtype", "bf16"] * (case.state == "bfloat16") + ["--recompute"] * case.recompute
    words += ["--no-merge"] * (not case.merge) + ["--against", "transformers"] * (case.state == "float32")
    return " ".join([*words, "--json", f"{folder}/{slug(case.name)}.json"])


def slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() or letter == "." else " " for letter in name).split())
