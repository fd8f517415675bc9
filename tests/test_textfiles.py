"""Text files as users' editors and tools write them."""

import codecs
import gzip

import pytest

from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import from_json, read_lines, to_json, written_whole

TEXT = "alpha béta\nγάμμα\n"


def _lines(path):
    return list(read_lines(path, error=ManifestError, remedy="give a text file"))


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.rstrip("\n").encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.replace("\n", "\r\n").encode("utf-16-be"),
        TEXT.encode("utf-32"),
        gzip.compress(TEXT.encode("utf-8-sig"), mtime=0),
        gzip.compress(TEXT.encode("utf-16"), mtime=0),
        gzip.compress(b"alpha b\xc3\xa9ta\n", mtime=0) + gzip.compress("γάμμα".encode(), mtime=0),
        # Two joined files, each with a mark.
        "\ufeffalpha béta\n\ufeffγάμμα\n".encode(),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.arpa"])
def test_marks_encodings_line_ends_and_gzip_do_not_change_the_text(tmp_path, data, name):
    (tmp_path / name).write_bytes(data)
    assert _lines(tmp_path / name) == [(1, "alpha béta"), (2, "γάμμα")]


def test_only_line_ends_separate_lines(tmp_path):
    inside = "a\u2028b\x85c\x0bd\x0ce\u2029f\x1cg"
    (tmp_path / "a.txt").write_text(f"{inside}\n\nb", encoding="utf-8")
    assert _lines(tmp_path / "a.txt") == [(1, inside), (2, ""), (3, "b")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("ab\ncafé\n".encode("latin-1"), r"a\.txt:2: cannot be read as UTF-8: byte 0xe9 after 'caf'"),
        ("ab\nШ".encode("utf-16")[2:], r"a\.txt:1: cannot be read as text: it has a NUL"),
        (b"ab\ncd\0\n", r"a\.txt:2: cannot be read as text: it has a NUL"),
        (b"ab\n\xed\xb2\x80\n", r"a\.txt:2: cannot be read as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\0\n\0\0\xd8", r"a\.txt:\d: cannot be read as text"),
        (gzip.compress(b"ab\n" * 999, mtime=0)[:-20], r"a\.txt: cannot be read: "),
        (gzip.compress(b"ab\n", mtime=0)[:12], r"a\.txt: cannot be read: "),
    ],
)
def test_what_is_not_text_is_refused_with_its_line(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        _lines(tmp_path / "a.txt")


def test_missing_files_and_folders_are_errors(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.txt: no such file\. Give a text file"):
        _lines(tmp_path / "none.txt")
    with pytest.raises(ManifestError, match="cannot be read"):
        _lines(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_written_files_are_read_back(tmp_path, name):
    with written_whole(tmp_path / name) as file:
        file.write(TEXT)
    assert [line for _, line in _lines(tmp_path / name)] == TEXT.splitlines()
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


@pytest.mark.parametrize(
    "value",
    ["\u2028\x85\x7f\ufeff", "\ud800 é", {"é": [1, -0.0, 1e308, 10**400, None, True]}, [], {"": {}}, [[[]]] * 200],
)
def test_written_json_is_read_back(value):
    line = to_json(value)
    assert len(line.splitlines()) == 1
    assert from_json(line.encode(), "here", error=ManifestError, remedy="") == value


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path):
    other, path = tmp_path / "other.txt", tmp_path / "a.txt"
    other.write_text("kept")
    (tmp_path / "a.txt.partial").symlink_to(other)
    with written_whole(path) as file:
        file.write("new")
    assert (other.read_text(), path.read_text(), path.is_symlink()) == ("kept", "new", False)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.txt", "other.txt"]


def test_data_has_at_most_a_hundred_levels():
    assert from_json(b"[" * 100 + b"]" * 100, "here", error=ManifestError, remedy="")
    for line in (b"[" * 101 + b"]" * 101, b'{"a":' * 101 + b"1" + b"}" * 101, b"[" * 9999):
        with pytest.raises(ManifestError, match="here: is nested more than 100 levels deep"):
            from_json(line, "here", error=ManifestError, remedy="")
