"""Readers of transcripts and tables refuse or skip whatever is damaged, with an error for people."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_asr.data.corpora.tedlium import read_tedlium
from ssl_asr.data.formats.beside import read_folder
from ssl_asr.data.formats.rows import ReadOptions
from ssl_asr.data.formats.speechbrain import read_speechbrain_json
from ssl_asr.data.formats.tables import read_table
from ssl_asr.data.preparation import Corpus, measure
from ssl_asr.errors import UserError
from tests.data.formats.test_beside import LONG, SHORT, SRT
from tests.data.sources import clip

STM = "a 1 ann 0.10 0.40 <NA> it 's\na 1 bob 0.40 0.50 <o,f0> x\n"
CSV = 'audio,text,start,duration,channel,weight\na.wav,"one, ""two""",0.1,0.2,0,1\na.wav,x,,,,\n'
JSON = '{"u": {"wav": {"file": "a.wav", "start": 800, "stop": 1600}, "wrd": "x", "segments": [{"end": 0.2}]}}'
ODD = st.sampled_from(
    [
        "\0",
        '"',
        "\n",
        "\n\n",
        "-->",
        "1e999",
        "-1",
        "9" * 5000,
        "nan",
        "\ud800",
        "\ufeff",
        "a" * 5000,
        "[",
        "{}",
        ",",
        "..",
        ".",
    ]
)


@st.composite
def damaged(draw, content):
    """A content with some pieces cut out and others put in."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(0, 8)))
        content = content[:at] + draw(ODD) + content[end:]
    return content.encode("utf-8", "surrogatepass")


READERS = {
    "a.TextGrid": (SHORT, lambda path: read_folder(path.parent, ReadOptions())),
    "b.TextGrid": (LONG, lambda path: read_folder(path.parent, ReadOptions(segments="keep"))),
    "a.srt": (SRT, lambda path: read_folder(path.parent, ReadOptions())),
    "a.vtt": (SRT, lambda path: read_folder(path.parent, ReadOptions())),
    "a.stm": (STM, lambda path: read_tedlium(path.parent)),
    "a.csv": (CSV, lambda path: read_table(path, ReadOptions())),
    "a.tsv": (CSV.replace(",", "\t"), lambda path: read_table(path, ReadOptions())),
    "a.json": (JSON, lambda path: read_speechbrain_json(path, ReadOptions())),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_have_no_traceback(name, memory_folder):
    content, read = READERS[name]
    folder = memory_folder / name
    clip(folder / "a.wav", 0.5)
    clip(folder / "b.wav", 0.5)

    @given(damaged(content))
    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    def check(data):
        (folder / name).write_bytes(data)
        try:
            found = read(folder / name)
        except UserError:
            return
        corpus = Corpus(found.rows, found.skips)
        measure(corpus)
        assert all(0 < row.duration <= 0.6 for row in corpus.rows)

    check()
