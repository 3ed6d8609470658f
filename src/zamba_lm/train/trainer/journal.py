"""The log of a run, ``log.jsonl``: one JSON object a line with its ``step``, cut back to the checkpoint when a run goes on."""

import json
import math
import os
from pathlib import Path

from zamba_lm.text.whole import replacing

FILE = "log.jsonl"


class Journal:
    """Appends to the log of a run folder. Numbers that JSON lacks (nan, inf) are written as null."""

    def __init__(self, run: Path):
        self.path = run / FILE

    def write(self, entry: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: _plain(value) for key, value in entry.items()}) + "\n")

    def flush(self) -> None:
        """Onto the disk: a checkpoint must not know steps that the log has lost."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, step: int) -> None:
        """Forget what came after ``step``, a last line that was cut off among it."""
        kept = [json.dumps(entry) + "\n" for entry in read(self.path) if entry["step"] <= step]
        with replacing(self.path) as beside:
            beside.write_text("".join(kept), encoding="utf-8")


def read(path: Path) -> list[dict]:
    """Entries of a log. A line that was cut off is passed over: it can only be the last of a session."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("step"), int)]


def _plain(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
