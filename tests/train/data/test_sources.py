"""What a name leads to, and the records that come from there."""

import datasets
import pytest

from tests.train.data.conftest import text
from zamba_lm.errors import ZambaError
from zamba_lm.train.data import files
from zamba_lm.train.data.sources import BadLine, Source, find, records


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a.jsonl.xz", "deep/c.parquet", "deep/d.ndjson.zst", "notes.txt", "manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_is_its_files_in_order(folder):
    assert [source.name for source in find([folder])] == ["a", "b", "c", "d"]


def test_a_json_file_is_read_where_it_is_named(folder):
    assert [source.name for source in find([folder / "manifest.json"])] == ["manifest"]


def test_files_and_patterns_in_the_order_given(folder):
    assert [source.name for source in find([folder / "deep" / "c.parquet", f"{folder}/*.jsonl*"])] == ["c", "a", "b"]


def test_files_of_one_name_get_their_folders_name(tmp_path):
    for name in ("en", "de"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train-0.jsonl").touch()
    assert [source.name for source in find([tmp_path])] == ["de-train-0", "en-train-0"]


def test_two_files_that_would_be_one_shard(tmp_path):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "a.jsonl.gz").touch()
    with pytest.raises(ZambaError, match="a.jsonl and .*a.jsonl.gz would become one shard"):
        find([tmp_path])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("b.jsonll", r"no file, folder or pattern .*b.jsonll \(did you mean b.jsonl\?\)"),
        ("nothing*", "no file, folder or pattern"),
        ("notes.txt", "notes.txt is in no format that is read here: .jsonl"),
        ("empty", "the folder .*empty holds no file that ends in"),
    ],
)
def test_names_that_lead_nowhere(folder, name, told):
    (folder / "empty").mkdir()
    with pytest.raises(ZambaError, match=told):
        find([folder / name])


def test_lines_and_what_is_wrong_with_some(jsonl):
    lines = ['{"text": "fine"}', "", '{"text": ', "[1]", "[" * 100_000, '{"text": "last"}']
    path = jsonl("a.jsonl", lines)
    found = list(records(Source("a", path)))
    assert [where for where, _ in found] == [f"line {n}" for n in range(1, 7)]
    assert [isinstance(one, BadLine) for _, one in found] == [False, True, True, True, True, False]
    assert [str(one).split(":")[0] for _, one in found[1:4]] == [
        "the line is empty",
        "not JSON",
        "a JSON list, expected an object",
    ]


def test_bytes_that_are_no_utf8_are_a_bad_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n{"text": "fine"}\n')
    first, second = (one for _, one in records(Source("a", tmp_path / "a.jsonl")))
    assert isinstance(first, BadLine) and second == {"text": "fine"}


# `datasets`


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing of a user's cache is read or written."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_parquet(tmp_path):
    rows = [{"text": text(i), "source": "x"} for i in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert list(records(*find([tmp_path / "a.parquet"]))) == [(f"row {i}", row) for i, row in enumerate(rows, 1)]


def test_broken_parquet_is_damage(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(files.Damaged, match="arquet"):
        list(records(Source("a", tmp_path / "a.parquet")))


@pytest.fixture
def hub(monkeypatch):
    """A hub that knows one data set, of three parts, and says how it was asked."""
    asked = []

    def load(name, config=None, *, split, streaming):
        asked.append((name, config, split))
        if name != "owner/name":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub or cannot be accessed.")
        numbers = {"shard": [0, 1, 2]}
        return datasets.IterableDataset.from_generator(
            lambda shard: ({"text": f"{s}-{i}"} for s in shard for i in range(2)), gen_kwargs=numbers
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_data_set_of_the_hub_is_as_many_sources_as_it_has_parts(hub):
    found = find(["owner/name"])
    assert [source.name for source in found] == ["owner-name-00000", "owner-name-00001", "owner-name-00002"]
    assert [[row["text"] for _, row in records(source)] for source in found] == [[f"{s}-0", f"{s}-1"] for s in range(3)]
    assert set(hub) == {("owner/name", None, "train")}


def test_config_and_split_of_a_data_set(hub):
    assert find(["owner/name/sample-10BT:test"])[0].name == "owner-name-sample-10BT-test-00000"
    assert hub == [("owner/name", "sample-10BT", "test")]


def test_a_data_set_that_is_not_there(hub):
    with pytest.raises(ZambaError, match="cannot open the data set owner/nmae: Dataset 'owner/nmae' doesn't exist"):
        find(["owner/nmae"])
