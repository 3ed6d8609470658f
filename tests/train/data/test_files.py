"""Lines of plain and compressed files; every whole line before the place where an archive is broken."""

import gzip
import lzma

import pytest
import zstandard

from zamba_lm.train.data.files import CHUNK, Damaged, lines

PACK = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
LINES = [f"line {i} ".encode() + str(i**7).encode() * (i % 50) for i in range(5000)]


def read(path):
    """Lines of a file and whether it was damaged behind them."""
    found = []
    try:
        for number, line in lines(path):
            found.append(line)
            assert number == len(found)
    except Damaged:
        return found, True
    return found, False


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("end", [b"", b"\n"], ids=["open end", "line end"])
def test_every_line_once(tmp_path, ending, end):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACK[ending](b"\n".join(LINES) + end))
    assert read(path) == (LINES, False)


@pytest.mark.parametrize("ending", [".xz", ".gz", ".zst"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_archive_gives_its_whole_lines(tmp_path, ending, share):
    path = tmp_path / f"a.jsonl{ending}"
    packed = PACK[ending](b"\n".join(LINES) + b"\n")
    path.write_bytes(packed[: int(len(packed) * share)])
    found, damaged = read(path)
    assert damaged and found == LINES[: len(found)] and len(found) < len(LINES)
    assert share < 0.5 or found


@pytest.mark.parametrize("ending", [".xz", ".gz", ".zst"])
def test_noise_in_an_archive_is_damage(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    packed = bytearray(PACK[ending](b"\n".join(LINES)))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    path.write_bytes(packed)
    found, damaged = read(path)
    sound = len(LINES) // 3  # gzip sees only at its end that something was wrong in the middle
    assert damaged and (found[:sound] == LINES[:sound] or (len(found) < sound and found == LINES[: len(found)]))


@pytest.mark.parametrize("ending", [".xz", ".gz", ".zst"])
def test_archives_laid_end_to_end_are_one(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACK[ending](b"one\ntw") + PACK[ending](b"o\nthree"))
    assert read(path) == ([b"one", b"two", b"three"], False)


@pytest.mark.parametrize("ending", PACK)
def test_an_empty_file_has_no_lines(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACK[ending](b""))
    assert read(path) == ([], False)


@pytest.mark.parametrize("ending", PACK)
def test_a_file_of_no_bytes_is_empty_not_broken(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(b"")
    assert read(path) == ([], False)


def test_a_line_longer_than_a_chunk(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"short\n" + b"x" * (3 * CHUNK + 5) + b"\nend\n")
    assert [len(line) for line in read(path)[0]] == [5, 3 * CHUNK + 5, 3]


def test_progress_ends_at_the_size_of_the_file(tmp_path):
    path, seen = tmp_path / "a.jsonl.xz", []
    path.write_bytes(lzma.compress(b"\n".join(LINES)))
    assert sum(1 for _ in lines(path, seen.append)) == len(LINES)
    assert seen == sorted(seen) and seen[-1] == path.stat().st_size
