"""Run the GPU tests and file what happened: ``make test-gpu``, or ``python -m tests.gpu_record`` where torch is installed.

CI has no GPU, so the outcome is committed beside the benchmarks, with everything needed to repeat it.
"""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "transformers", "mamba-ssm", "causal-conv1d")


def main(args: list[str]) -> int:
    """Run, print as it goes, file the outcome, return pytest's exit code; that no test was found (5) is a failure too."""
    if not torch.cuda.is_available():
        print("error: no CUDA device here; the GPU tests need one", file=sys.stderr)
        return 1
    together = ["-n", str(min(24, os.cpu_count() or 1)), "--dist", "worksteal"]  # most of the time goes into compiling kernels
    command = ["python", "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *together, *args]
    code, output = run([sys.executable, *command[1:]])
    now = datetime.now(UTC)
    target = RESULTS / f"gpu-tests-{now:%Y-%m-%d-%H%M}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(report(shlex.join(command), code, output, now))
    print(f"filed under {target.relative_to(ROOT)}")
    return code


def run(command: list[str]) -> tuple[int, str]:
    """Exit code and whole output of a command, which is also shown while it runs."""
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def report(command: str, code: int, output: str, now: datetime) -> str:
    rows = {
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
        "device": f"{torch.cuda.get_device_name()} (compute capability {'.'.join(map(str, torch.cuda.get_device_capability()))})",
        "python": platform.python_version(),
        "CUDA of torch": torch.version.cuda,
        **{name: installed(name) for name in PACKAGES},
        "command": f"`{command}`",
        "exit code": code,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"# GPU tests, {'passed' if code == 0 else 'FAILED'}\n\n| | |\n|---|---|\n{table}\n\n```\n{output.strip()}\n```\n"


def commit() -> str:
    """The checked-out commit, marked when the tree differs from it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "not a git checkout"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
