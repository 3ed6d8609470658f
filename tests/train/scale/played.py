"""Scenes that need several processes, played in a process of their own."""

import json
import os
import subprocess
import sys


def played(module: str, *words: str) -> dict:
    """What ``python -m tests.train.scale.MODULE WORDS`` tells, and what it said on the way as "said"."""
    command = [sys.executable, "-m", f"tests.train.scale.{module}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"said": done.stderr}
