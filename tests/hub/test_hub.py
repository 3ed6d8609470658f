"""From names to folders: local, embedded, cached, fetched; every way to fail is one line that says what to do."""

import errno
import fnmatch
import importlib
import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from zamba_lm import hub
from zamba_lm.errors import ZambaError
from zamba_lm.hub import EMBEDDED, REPOSITORIES, nearest, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"config.json": "{}", "tokenizer.json": "{}"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, away from the user's own."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder


def store(cache, repository, files, revision="main", commit=COMMIT):
    """Files as the hub's client keeps them: blobs, a snapshot of links to them, and a ref by name."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        blob = root / "blobs" / f"{commit}-{name}"
        blob.write_text(text)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(blob)
    (root / "refs" / revision).write_text(commit)
    return snapshot


@pytest.fixture
def remote(cache, monkeypatch):
    """A hub with these repositories, behind the client's one function that we call; ``asked`` records the calls."""
    repositories, asked = {}, []

    def snapshot_download(repository, *, revision=None, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        files = repositories[repository]
        if isinstance(files, Exception):
            raise files
        chosen = {name: text for name, text in files.items() if any(fnmatch.fnmatch(name, one) for one in allow_patterns)}
        root = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
        missing = {name: text for name, text in chosen.items() if not (root / name).exists()}
        return str(store(cache, repository, missing, revision or "main"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return repositories, asked


def refusal(*args):
    with pytest.raises(ZambaError) as caught:
        resolve(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# local


def test_a_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert resolve(tmp_path / "mine") == resolve(str(tmp_path / "mine")) == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert resolve("mine") == Path("mine") and resolve("./mine") == Path("mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/mine") == tmp_path / "mine"


def test_a_folder_goes_before_a_known_name(tmp_path, monkeypatch):
    (tmp_path / "zamba2-2.7b").mkdir()
    (tmp_path / "zamba2-2.7b" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve("zamba2-2.7b") == Path("zamba2-2.7b")


def test_what_is_no_folder_of_a_model(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("")
    (tmp_path / "weights.safetensors").write_text("")
    assert "has no config.json" in refusal(str(tmp_path / "empty")) and "it holds nothing" in refusal(tmp_path / "empty")
    assert "it holds train.txt" in refusal(tmp_path / "data")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    assert f"its finished model is {tmp_path / 'run' / 'model'}" in refusal(tmp_path / "run")
    assert "is a file; give the folder" in refusal(tmp_path / "weights.safetensors")
    for name in ("./nothing", "/nothing/here", "~/nothing-there", "a/b/c", Path("Zyphra/Zamba2-2.7B")):
        assert "there is no folder" in refusal(name)
    monkeypatch.chdir(tmp_path)
    assert "has no config.json" in refusal("data")


@pytest.mark.parametrize("name", ["", "  ", "x" * 300, "a\0b", "~nobody-of-that-name/x"])
def test_names_that_cannot_be(name):
    assert len(refusal(name)) < 500


def test_the_folder_of_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "hub.py"))
    assert "this installation lacks the embedded model zamba2-pebble" in refusal(EMBEDDED)
    (tmp_path / "pebble").mkdir()
    (tmp_path / "pebble" / "config.json").write_text("{}")
    assert resolve(EMBEDDED) == tmp_path / "pebble"
    assert "has no revisions" in refusal(EMBEDDED, "main")


def test_a_local_folder_has_no_revisions(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert f"{tmp_path} is a local folder and has no revisions, but 'iter2500' was asked for" == refusal(tmp_path, "iter2500")


# unknown names


@pytest.mark.parametrize(
    ("name", "near"), [("zamba2-2.7", "zamba2-2.7b"), ("Zamba2-7b-instrct", "zamba2-7b-instruct"), ("zamba2-peble", EMBEDDED)]
)
def test_a_near_miss_names_the_model_that_was_meant(name, near):
    assert f"unknown model {name!r} (did you mean {near}?)" in refusal(name)


def test_a_far_miss_lists_what_there_is():
    line = refusal("gpt4")
    assert all(name in line for name in (EMBEDDED, *REPOSITORIES))
    assert nearest("gpt4", REPOSITORIES) == ""


# cached


@pytest.mark.parametrize("name", ["zamba2-2.7b", "ZAMBA2-2.7B", "Zyphra/Zamba2-2.7B", "zyphra/zamba2-2.7b"])
def test_a_complete_copy_in_the_cache_needs_no_network(cache, name):
    folder = store(cache, "Zyphra/Zamba2-2.7B", {**CONFIG, "model.safetensors": ""})
    assert resolve(name) == folder


def test_a_revision_is_a_branch_or_a_commit(cache):
    store(cache, "Zyphra/Zamba-7B-v1", {**CONFIG, "model.safetensors": "new"}, commit="f" * 40)
    early = store(cache, "Zyphra/Zamba-7B-v1", {**CONFIG, "model.safetensors": "early"}, revision="iter2500")
    assert resolve("zamba-7b-v1", "iter2500") == resolve("zamba-7b-v1", COMMIT) == early
    assert resolve("zamba-7b-v1") == early.parent / ("f" * 40)
    assert "--revision iter5000" in refusal("zamba-7b-v1", "iter5000")


INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ({"config.json": "{}"}, False),
        ({"model.safetensors": ""}, False),
        ({**CONFIG, "model.safetensors.index.json": INDEX, "model-1.safetensors": ""}, False),
        ({**CONFIG, "model.safetensors.index.json": INDEX, "model-1.safetensors": "", "model-2.safetensors": ""}, True),
        ({**CONFIG, "model.safetensors.index.json": "{", "model-1.safetensors": ""}, False),
        ({**CONFIG, "model.safetensors.index.json": "[]", "model-1.safetensors": ""}, False),
        ({**CONFIG, "pytorch_model.bin.index.json": INDEX, "model.safetensors": ""}, True),
        ({**CONFIG, "pytorch_model.bin": ""}, True),
        ({**CONFIG, "Zamba2_2p7b_direct_from_pytorch.pt": ""}, True),
    ],
)
def test_only_a_complete_copy_counts(cache, remote, files, complete):
    folder = store(cache, "a/b", files)
    remote[0]["a/b"] = {}
    if complete:
        assert resolve("a/b") == folder and not remote[1]
    else:
        assert "hf download a/b" in refusal("a/b") and remote[1]


def test_a_broken_link_in_the_cache_is_not_complete(cache, remote):
    folder = store(cache, "a/b", {**CONFIG, "model.safetensors": ""})
    (folder / "model.safetensors").resolve().unlink()
    remote[0]["a/b"] = {**CONFIG, "model.safetensors": "again"}
    assert (resolve("a/b") / "model.safetensors").read_text() == "again"


# fetched


def test_only_safetensors_are_fetched_where_there_are_some(remote):
    repositories, asked = remote
    repositories["Zyphra/Zamba2-2.7B"] = {**CONFIG, "model.safetensors": "", "direct.pt": "", "modeling.py": "", "README.md": ""}
    folder = resolve("zamba2-2.7b")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert len(asked) == 1
    assert resolve("zamba2-2.7b") == folder and len(asked) == 1  # from then on without the network


def test_other_formats_are_fetched_where_there_are_none(remote):
    repositories, asked = remote
    repositories["a/b"] = {**CONFIG, "pytorch_model.bin": "", "run.py": ""}
    assert {path.name for path in resolve("a/b", "v2").iterdir()} == {*CONFIG, "pytorch_model.bin"}
    assert [revision for _, revision, _ in asked] == ["v2", "v2"]


def test_code_is_never_asked_for(remote):
    repositories, asked = remote
    repositories["a/b"] = {"config.json": "{}"}
    assert "lacks config.json or weights: run hf download a/b" in refusal("a/b")
    assert not any(
        fnmatch.fnmatch(name, pattern) for _, _, patterns in asked for pattern in patterns for name in ("x.py", "x.so", "x.sh")
    )


HTTP = importlib.import_module(errors.HTTPError.__module__.split(".")[0])  # whichever library the installed client speaks with


def http(kind, status):
    request = HTTP.Request("GET", "https://huggingface.co/api/models/a/b")
    return kind("trouble\nover several lines", response=HTTP.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            lambda: http(errors.GatedRepoError, 403),
            "is gated: accept its terms on https://huggingface.co/Zyphra/Zamba2-2.7, then run",
        ),
        (
            lambda: http(errors.RepositoryNotFoundError, 404),
            "there is no Zyphra/Zamba2-2.7 on the hub (did you mean Zyphra/Zamba2-2.7B?)",
        ),
        (lambda: http(errors.RevisionNotFoundError, 404), "Zyphra/Zamba2-2.7 has no revision 'v9'"),
        (lambda: http(errors.HfHubHTTPError, 503), "is not in the hub's cache and the hub cannot be reached"),
        (
            lambda: errors.LocalEntryNotFoundError("nothing"),
            "the hub cannot be reached; with a connection, run: hf download Zyphra/Zamba2-2.7",
        ),
        (lambda: errors.OfflineModeIsEnabled("offline"), "with a connection, run"),
        (lambda: HTTP.ConnectError("no route"), "the hub cannot be reached"),
        (lambda: HTTP.ReadTimeout("slow"), "the hub cannot be reached"),
        (lambda: ConnectionResetError(errno.ECONNRESET, "reset"), "the hub cannot be reached"),
        (
            lambda: OSError(errno.ENOSPC, "No space left on device"),
            "cannot store Zyphra/Zamba2-2.7 in the hub's cache: No space left",
        ),
        (lambda: PermissionError(errno.EACCES, "Permission denied"), "in the hub's cache: Permission denied"),
    ],
)
def test_every_trouble_is_one_line(remote, error, words):
    remote[0]["Zyphra/Zamba2-2.7"] = error()
    assert words in refusal("Zyphra/Zamba2-2.7", "v9")


def test_a_bug_is_not_dressed_up(remote):
    remote[0]["a/b"] = TypeError("ours")
    with pytest.raises(TypeError, match="ours"):
        resolve("a/b")


def test_without_a_network_the_line_says_what_to_run():
    """The client itself, cut off by the tests' socket guard."""
    line = refusal("zamba2-1.2b")
    assert line.startswith("Zyphra/Zamba2-1.2B is not in the hub's cache and the hub cannot be reached")
    assert line.endswith("with a connection, run: hf download Zyphra/Zamba2-1.2B")


def test_offline_by_choice_is_said(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refusal("zamba-7b-v1", "iter2500")
    assert "at revision 'iter2500' is not in the hub's cache and HF_HUB_OFFLINE is set" in line
    assert line.endswith("hf download Zyphra/Zamba-7B-v1 --revision iter2500")


@pytest.mark.parametrize("name", ["a--b..c/d", "-a/b", "a/" + "b" * 120])
def test_names_that_the_hub_does_not_allow(name):
    assert "cannot be a hub name" in refusal(name)
