"""What a run leaves: a file of lines that grows with every step, so that a run that is cut off has kept what it measured.

A line is {"id": ..., "report": ...}; a report that grew is written again under its id, and the last one counts.
"""

import json
from pathlib import Path


class Lines:
    """A file of reports, begun anew."""

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.written = file, {}
        file.write_text("")

    def keep(self, reports: dict[str, dict]) -> None:
        """Append those that are new or have grown."""
        with self.file.open("a") as stream:
            for name, report in reports.items():
                line = json.dumps({"id": name, "report": report})
                if self.written.get(name) != line:
                    stream.write(line + "\n")
                    self.written[name] = line


def read(paths: list[Path]) -> list[dict]:
    """Reports of files and of folders of files: ours, and what `zamba-lm bench --json` wrote. Of two that measured the same the
    later one counts."""
    found: dict[str, dict] = {}
    for file in [file for path in paths for file in (sorted(path.glob("*.json*")) if path.is_dir() else [path])]:
        for name, report in _lines(file) if file.suffix == ".jsonl" else _documents(file):
            found[name] = report
    return list(found.values())


def _lines(file: Path) -> list[tuple[str, dict]]:
    found = []
    for line in file.read_text().splitlines():
        try:
            told = json.loads(line)
        except ValueError:  # cut off while it was written
            continue
        found.append((told["id"], told["report"]))
    return found


def _documents(file: Path) -> list[tuple[str, dict]]:
    told = json.loads(file.read_text())
    return [(_name(report), report) for report in (told if isinstance(told, list) else [told])]


def _name(report: dict) -> str:
    rows = sorted({(row["batch"], row["context"]) for row in report["rows"]}) if report["kind"] != "kernels" else ""
    options = [report["options"].get(name) for name in ("state_dtype", "recompute", "op", "batch", "context")]
    return json.dumps([report["kind"], report["model"]["name"], rows, options])
