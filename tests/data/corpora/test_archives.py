"""Archives are extracted whole, into their folder and within bounds; downloads are continued and checked."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ssl_asr.data.corpora.archives import extract, is_archive, stem_of
from ssl_asr.data.corpora.downloads import CORPORA, Remote, download, remote_of
from ssl_asr.errors import ConfigError, ManifestError
from tests.data.sources import clip, run, text


def tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                entry.type, entry.linkname = content
                file.addfile(entry)
            else:
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def corpus(tmp_path):
    """A folder with one recording."""
    clip(tmp_path / "corpus" / "a.wav")
    text(tmp_path / "corpus" / "a.txt", "words")
    return tmp_path / "corpus"


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip"])
def test_corpora_are_read_from_archives(corpus, tmp_path, suffix):
    archive = tmp_path / f"my.corpus.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in corpus.iterdir():
                file.write(path, f"corpus/{path.name}")
    else:
        with tarfile.open(
            archive, {"tgz": "w:gz"}.get(suffix, f"w:{suffix.removeprefix('tar').removeprefix('.')}")
        ) as file:
            file.add(corpus, "corpus")
    [row] = run(archive, tmp_path / "out")["all"]
    assert row["audio_filepath"] == "extracted/my.corpus/corpus/a.wav"
    assert row["text"] == "words"
    assert is_archive(archive)
    assert stem_of(archive) == "my.corpus"


OUT = [
    {"../out.txt": b"x"},
    {"/tmp/ssl_asr_out.txt": b"x"},
    {"a/../../out.txt": b"x"},
    {"link": (tarfile.SYMTYPE, "/etc"), "link/out.txt": b"x"},
    {"link": (tarfile.SYMTYPE, "../..")},
    {"hard": (tarfile.LNKTYPE, "../out.txt")},
    {"hard": (tarfile.LNKTYPE, "gone.txt")},
    {"pipe": (tarfile.FIFOTYPE, "")},
]


@pytest.mark.parametrize("members", OUT, ids=lambda members: next(iter(members)))
def test_members_that_lead_out_are_refused(tmp_path, members):
    text(tmp_path / "out.txt", "before")
    archive = tar(tmp_path / "a.tar.gz", {"good.txt": b"good", **members})
    with pytest.raises(ManifestError, match="is not safe to extract|is damaged"):
        extract(archive, tmp_path / "in")
    assert (tmp_path / "out.txt").read_text() == "before"
    assert not list((tmp_path / "in").iterdir())


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a\\..\\..\\out.txt", "C:/out.txt", "link"])
def test_zipped_members_that_lead_out_are_refused(tmp_path, name):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        file.writestr(entry, "/etc")
    with pytest.raises(ManifestError, match="is not safe to extract"):
        extract(archive, tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_archives_that_grow_too_large_are_refused(tmp_path, kind):
    archive = tmp_path / f"a.{kind}"
    content = bytes(3_000_000)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a", content)
            file.writestr("b", content)
    else:
        tar(archive, {"a": content, "b": content})
    with pytest.raises(ManifestError, match="would write more than 4,000,000 bytes"):
        extract(archive, tmp_path / "in", limit=4_000_000)
    assert not list((tmp_path / "in").iterdir())
    assert (extract(archive, tmp_path / "in", limit=7_000_000) / "b").stat().st_size == 3_000_000


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_cut_archives_are_refused_wherever_they_end(tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    noise = [hashlib.sha256(bytes([i])).digest() * 20 for i in range(4)]
    if kind == "zip":
        with zipfile.ZipFile(whole, "w") as file:
            for i, content in enumerate(noise):
                file.writestr(f"{i}", content)
    else:
        tar(whole, {f"{i}": content for i, content in enumerate(noise)}, "w" if kind == "tar" else "w:gz")
    data = whole.read_bytes()
    # Up to the end of the last member: what follows it in a tar file is padding.
    end = 4 * (512 + 1024) if kind == "tar" else len(data)
    for length in {0, 1, 300, 512, 1536, 2048, end // 2, end - 1, end}:
        if length >= len(data):
            continue
        cut = tmp_path / f"cut.{kind}"
        cut.write_bytes(data[:length])
        with pytest.raises(ManifestError, match=r"cut\.\S+: (is damaged|ends early)"):
            extract(cut, tmp_path / "in")
        assert not list((tmp_path / "in").iterdir())


def test_extraction_is_repeated_unless_it_was_finished(tmp_path):
    archive = tar(tmp_path / "a.tar.gz", {"one.txt": b"1", "two.txt": b"2"})
    text(tmp_path / "in" / "a.partial" / "one.txt", "half")
    folder = extract(archive, tmp_path / "in")
    assert sorted(path.name for path in folder.iterdir()) == [".archive", "one.txt", "two.txt"]
    assert not (tmp_path / "in" / "a.partial").exists()
    (folder / "two.txt").write_bytes(b"kept")
    assert extract(archive, tmp_path / "in") == folder
    assert (folder / "two.txt").read_bytes() == b"kept"
    tar(archive, {"other.txt": bytes(range(200))})
    with pytest.raises(ManifestError, match="is there, and is not what"):
        extract(archive, tmp_path / "in")


# Downloads ------------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves one file. ``ranges`` are the requested ranges; each connection ends after ``most`` bytes."""

    def __init__(self, data):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.ranges, self.most, self.can_continue = data, [], len(data), True


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.can_continue else 0
        if start >= len(self.server.data):
            self.send_error(416)
            return
        rest = self.server.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(corpus, tmp_path):
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as file:
        file.add(corpus, "corpus")
    server = Server((tmp_path / "c.tar.gz").read_bytes())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server, data=None):
    digest = hashlib.md5(server.data if data is None else data).hexdigest()
    return Remote(f"http://127.0.0.1:{server.server_port}/c.tar.gz", f"md5:{digest}")


def test_downloads_go_on_where_they_stopped(server, tmp_path):
    server.most = 1000
    with pytest.raises(ConfigError, match="cannot be downloaded after 1,000 bytes.*continues"):
        download(remote(server), tmp_path / "d")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["c.tar.gz.part"]
    server.most = len(server.data)
    path = download(remote(server), tmp_path / "d")
    assert server.ranges == [None, "bytes=1000-"]
    assert path.read_bytes() == server.data
    assert download(remote(server), tmp_path / "d") == path
    assert len(server.ranges) == 2


def test_a_download_starts_again_where_the_server_cannot_go_on(server, tmp_path):
    text(tmp_path / "d" / "c.tar.gz.part", "start")
    server.can_continue = False
    assert download(remote(server), tmp_path / "d").read_bytes() == server.data


@pytest.mark.parametrize("part", [b"", b"other start"])
def test_a_download_with_another_digest_is_removed(server, tmp_path, part):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "c.tar.gz.part").write_bytes(part)
    expected = remote(server) if part else remote(server, b"other")
    with pytest.raises(ConfigError, match="has the md5 digest .*, expected"):
        download(expected, tmp_path / "d")
    assert not list((tmp_path / "d").iterdir())


def test_a_complete_part_is_taken(server, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "c.tar.gz.part").write_bytes(server.data)
    assert download(remote(server), tmp_path / "d").read_bytes() == server.data


def test_an_address_is_downloaded_and_extracted(server, tmp_path, capsys):
    url = remote(server).url
    [row] = run(url, tmp_path / "out", digest=f"sha256:{hashlib.sha256(server.data).hexdigest()}")["all"]
    assert row["audio_filepath"] == "extracted/c/corpus/a.wav"
    assert "no digest" not in capsys.readouterr().err
    run(url, tmp_path / "two")
    assert "has no digest to check" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be downloaded: .*Check the network"):
        download(Remote("http://127.0.0.1:9/a.zip", None), tmp_path)
    with pytest.raises(ConfigError, match="no corpus 'librispeech:dev'. Did you mean 'librispeech:dev-"):
        remote_of("librispeech:dev")
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        download(Remote("http://127.0.0.1:9/a b.zip", None), tmp_path)
    for url in ("https://", "http://[x/a.zip"):
        with pytest.raises(ConfigError, match="is no address"):
            remote_of(url)
    assert not list(tmp_path.iterdir())
    assert all(each.digest for each in CORPORA.values())


@pytest.mark.parametrize("path", ["..%2F..%2Fx.zip", "%2Fetc%2Fx.zip", "a/x.zip?b=c", "../x.zip"])
def test_names_of_downloads_stay_in_their_folder(path):
    assert Remote(f"https://example.org/{path}", None).name == "x.zip"
