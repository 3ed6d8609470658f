"""The table of floors in docs/house.md, held against the imports: they go down only, and never to a neighbour."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "zamba_lm"
ROW = re.compile(r"^\| (\d) \| ([a-z, ]+) \|", re.MULTILINE)  # | floor | room, room | ...
FLOOR = {room: int(floor) for floor, rooms in ROW.findall((ROOT / "docs" / "house.md").read_text()) for room in rooms.split(", ")}
EVERYWHERE = "errors"  # how a user's mistake is told belongs to no room
FRONT_DOORS = (Path("__init__.py"), Path("__main__.py"))  # lazy names and `python -m zamba_lm`: they stand outside


def rooms_imported(path, code):
    """Rooms that a module imports, lazily inside functions or not; "" is the package itself, whose door leads upwards."""
    package = ("zamba_lm", *path.parts[:-1])
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            names = [f"{base}{node.module}.{alias.name}" if node.module else base + alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] if "." in name else "" for name in names if name.split(".")[0] == "zamba_lm")


def wrong_ways(path, code):
    """Imports of one module that do not go down, as sentences."""
    room = path.parts[0].removesuffix(".py")
    for target in rooms_imported(path, code):
        if target not in FLOOR:
            yield f"{path} imports zamba_lm.{target}, which is no room; import the room that holds it"
        elif target not in (room, EVERYWHERE) and FLOOR[target] >= FLOOR[room]:
            yield f"{path} on floor {FLOOR[room]} imports {target} on floor {FLOOR[target]}"


MODULES = {path.relative_to(SOURCE): path for path in sorted(SOURCE.rglob("*.py"))}


def test_the_table_is_read():
    assert FLOOR["cli"] == 7 and FLOOR["model"] == 1 and FLOOR["ops"] == FLOOR["errors"] == 0


def test_every_module_stands_in_a_known_room():
    rooms = {path.parts[0].removesuffix(".py") for path in MODULES if path not in FRONT_DOORS}
    assert rooms and rooms <= set(FLOOR), f"rooms without a floor: {sorted(rooms - set(FLOOR))}"


def test_imports_go_down():
    wrong = [line for path, file in MODULES.items() if path not in FRONT_DOORS for line in wrong_ways(path, file.read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("ops/conv/cpu.py", "from zamba_lm.model.config import ZambaConfig"),
        ("ops/conv/cpu.py", "def f():\n    import zamba_lm.text.chat"),
        ("model/load.py", "from ..llm import LLM"),
        ("model/load.py", "from .. import llm"),
        ("model/load.py", "from zamba_lm import LLM"),
        ("model/load.py", "import zamba_lm"),
        ("hub.py", "from . import text"),
        ("serve/app.py", "from zamba_lm.eval import tasks"),
        ("engine/engine.py", "from zamba_lm import train"),
    ],
)
def test_a_way_up_or_across_is_seen(path, code):
    assert list(wrong_ways(Path(path), code))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("cli/main.py", "from zamba_lm.llm import LLM"),
        ("model/load.py", "from zamba_lm.hub import resolve\nfrom .config import ZambaConfig\nfrom . import zamba"),
        ("hub.py", "from .errors import ZambaError"),
        ("engine/pool.py", "from ..model.state import State\nimport torch"),
        ("ops/conv/__init__.py", "from zamba_lm.ops.conv import reference\nfrom .. import dispatch"),
    ],
)
def test_a_way_down_is_free(path, code):
    assert not list(wrong_ways(Path(path), code))
