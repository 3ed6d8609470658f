"""What the pages hold: fenced blocks, shell lines, links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
INLINE_MAKE = re.compile(r"`make ([a-z-]+)")


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language, in order."""
    return [code for found, code in FENCE.findall(page.read_text()) if found == language]


def shell_lines(page: Path) -> list[str]:
    """Commands in a page's bash blocks, continued lines joined, comment lines left out."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]
