"""From a name or a path to a local folder that holds config.json. Data alone is fetched, code never."""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from zamba_lm.errors import ZambaError

EMBEDDED = "zamba2-pebble"  # ships inside the package

# short names of the published models
REPOSITORIES = {
    "zamba-7b-v1": "Zyphra/Zamba-7B-v1",
    "zamba-7b-v1-phase1": "Zyphra/Zamba-7B-v1-phase1",
    "zamba2-1.2b": "Zyphra/Zamba2-1.2B",
    "zamba2-1.2b-instruct": "Zyphra/Zamba2-1.2B-instruct",
    "zamba2-1.2b-instruct-v2": "Zyphra/Zamba2-1.2B-Instruct-v2",
    "zamba2-2.7b": "Zyphra/Zamba2-2.7B",
    "zamba2-2.7b-instruct": "Zyphra/Zamba2-2.7B-instruct",
    "zamba2-2.7b-instruct-v2": "Zyphra/Zamba2-2.7B-Instruct-v2",
    "zamba2-7b": "Zyphra/Zamba2-7B",
    "zamba2-7b-instruct": "Zyphra/Zamba2-7B-Instruct",
    "zamba2-7b-instruct-v2": "Zyphra/Zamba2-7B-Instruct-v2",
}
_TEXTS = ("*.json", "*.jinja", "tokenizer.model")
_SAFE = (*_TEXTS, "*.safetensors")
_OTHER = (*_TEXTS, "*.bin", "*.pt")  # only where a repository has no safetensors
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: a folder, the embedded model, a short name, or owner/name on the hub at a ``revision``.

    A complete copy in the hub's cache is taken as it is, without asking the network; otherwise missing files are fetched,
    resuming what an interrupted download left. Raises ZambaError, one line that says what to do, for everything that can be in
    the way.
    """
    name = str(name_or_path)
    if name == EMBEDDED:
        return _embedded(revision)
    path = _path(name)
    if (path / "config.json").is_file():
        return _local(path, revision)
    repository = REPOSITORIES.get(name.lower(), _canonical(name))
    if isinstance(name_or_path, Path) or not _REPOSITORY.fullmatch(repository) or _looks_local(name, path):
        raise _nowhere(name, path)
    return _from_hub(repository, revision)


def nearest(name: str, known: Iterable[str]) -> str:
    """For a near miss of a known name the words " (did you mean ...?)", otherwise nothing."""
    by_lower = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), by_lower, 1, cutoff=0.6)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""


# on this machine


def _embedded(revision: str | None) -> Path:
    folder = Path(__file__).parent / "pebble"
    if revision:
        raise ZambaError(f"{EMBEDDED} ships inside the package and has no revisions, but {revision!r} was asked for")
    if not (folder / "config.json").is_file():
        raise ZambaError(
            f"this installation lacks the embedded model {EMBEDDED}: {folder} has no config.json; install the package again"
        )
    return folder


def _local(path: Path, revision: str | None) -> Path:
    if revision:
        raise ZambaError(f"{path} is a local folder and has no revisions, but {revision!r} was asked for")
    return path


def _path(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, an unknown user's home
        raise ZambaError(
            f"{name[:80]!r} can be neither a folder nor a model's name: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not name.strip():
        raise ZambaError(f"no model named; give a folder, a hub name or one of {', '.join((EMBEDDED, *REPOSITORIES))}")
    return path


def _looks_local(name: str, path: Path) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or path.exists()


def _nowhere(name: str, path: Path) -> ZambaError:
    """Why a name is no model, as exactly as can be said without the network."""
    if path.is_file():
        return ZambaError(f"{name} is a file; give the folder that holds config.json and the weights")
    if path.is_dir():
        if (path / "model" / "config.json").is_file():
            return ZambaError(f"{name} is the folder of a training run; its finished model is {path / 'model'}")
        inside = ", ".join(sorted(one.name for one in path.iterdir())[:5]) or "nothing"
        return ZambaError(f"{name} has no config.json, so it is no checkpoint folder; it holds {inside}")
    if "/" in name or "\\" in name or name in (".", ".."):
        return ZambaError(f"there is no folder {name}")
    known = (EMBEDDED, *REPOSITORIES)
    hint = nearest(name, known) or f"; known names: {', '.join(known)}"
    return ZambaError(f"unknown model {name!r}{hint}; a folder or a hub name like Zyphra/Zamba2-2.7B will do as well")


# on the hub


def _from_hub(repository: str, revision: str | None) -> Path:
    from huggingface_hub.errors import HFValidationError

    try:
        return _cached(repository, revision) or _download(repository, revision)
    except HFValidationError as error:
        raise ZambaError(f"{repository[:120]!r} cannot be a hub name: {str(error)[:200]}") from error


def _canonical(name: str) -> str:
    """A published repository's name as its authors spell it: the hub ignores the case, its cache on disk does not."""
    return next((one for one in REPOSITORIES.values() if one.lower() == name.lower()), name)


def _cached(repository: str, revision: str | None) -> Path | None:
    """The complete copy in the cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) and _is_complete(Path(config).parent) else None


def _is_complete(folder: Path) -> bool:
    """Config and all weights there? An index names its shards; without one any weights file will do."""
    if not (folder / "config.json").is_file():
        return False
    indexes = list(folder.glob("*.index.json"))
    whole = ("model.safetensors", "pytorch_model.bin") if indexes else _WEIGHTS
    files = (path for pattern in whole for path in folder.glob(pattern))
    return any(path.is_file() for path in files) or any(map(_has_shards, indexes))  # is_file sees a link to nothing


def _has_shards(index: Path) -> bool:
    try:
        return all((index.parent / name).is_file() for name in json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # damaged, so not complete


def _download(repository: str, revision: str | None) -> Path:
    folder = _fetch(repository, revision, _SAFE)
    if not any(folder.glob("*.safetensors")):
        folder = _fetch(repository, revision, _OTHER)
    if not _is_complete(folder):
        command = _command(repository, revision)
        raise ZambaError(
            f"{folder} lacks config.json or weights: run {command}, and if that changes nothing {repository} is no model"
        )
    return folder


def _fetch(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client raises kinds of its own, of its HTTP library's and OSError
        reason = _reason(error, repository, revision)
        if reason is None:
            raise
        raise ZambaError(reason) from error


def _reason(error: Exception, repository: str, revision: str | None) -> str | None:
    """What the hub client's exception means for the user, None when it is none of those that are known."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated: accept its terms on {page}, then run: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; {page}/tree/main lists them"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {repository} on the hub{_hint(repository)} (if it is private, run: hf auth login)"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
        return f"cannot store {repository} in the hub's cache: {error.strerror}"
    if isinstance(error, OSError | errors.EntryNotFoundError) or type(error).__module__.startswith(
        ("http", "requests", "urllib3")
    ):
        return _unreachable(repository, revision)
    return None


def _unreachable(repository: str, revision: str | None) -> str:
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    at = f" at revision {revision!r}" if revision else ""
    command = _command(repository, revision)
    return f"{repository}{at} is not in the hub's cache and {why}; with a connection, run: {command}{_hint(repository)}"


def _command(repository: str, revision: str | None) -> str:
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")


def _hint(repository: str) -> str:
    return "" if repository in REPOSITORIES.values() else nearest(repository, REPOSITORIES.values())
