"""Every format that people keep speech in: lengths as decoding gives them, and parts at exact positions."""

import json
import struct

import av
import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.data import ffmpeg
from ssl_asr.data.audio import AUDIO_SUFFIXES, audio_duration_s, check_header, read_waveform
from ssl_asr.data.inputs import gather
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.media import SoundfileSource, open_source
from ssl_asr.data.remote import MediaError
from ssl_asr.errors import AudioError, ManifestError, UserErrors
from ssl_asr.types import Utterance
from tests.audio_files import FORMATS, encode, new_stream, speech_like, with_checksums, write_stream

RATE = 16000


def utterance(path, duration=0.0, **more):
    return Utterance(id="u1", audio_filepath=str(path), duration=duration, where="m.jsonl:7", **more)


def agrees_with_decoding(path, seconds, *, tolerance=0.001):
    """The measured length, the check of the header and the samples agree."""
    length = audio_duration_s(path)
    assert length == pytest.approx(seconds, abs=tolerance)
    assert len(read_waveform(utterance(path, length))) == pytest.approx(length * RATE, abs=1)
    check_header(utterance(path, length))
    with pytest.raises(AudioError, match="before the manifest says"):
        check_header(utterance(path, length + 1.0))


# Formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "codec", "rate", "options"), FORMATS, ids=[row[0] for row in FORMATS])
def test_every_format_gives_the_sound_that_was_written(tmp_path, name, kind, codec, rate, options):
    path = encode(tmp_path / name, speech_like(2.0, rate), rate, kind=kind, codec=codec, **options)
    assert path.suffix in AUDIO_SUFFIXES
    agrees_with_decoding(path, 2.0, tolerance=0.1)
    signals = []
    found, written = read_waveform(utterance(path), signals=signals).numpy(), speech_like(2.0, RATE)
    assert signals[0].findings() == []
    # Some containers do not note the delay of the encoder, at most 0.15 s.
    inner = written[2400:14400]
    scores = [np.corrcoef(found[lag : lag + len(inner)], inner)[0, 1] for lag in range(0, 4800, 2)]
    assert max(scores) > 0.93


def test_a_folder_of_all_formats_is_read_whole(tmp_path):
    for name, kind, codec, rate, options in FORMATS:
        encode(tmp_path / name, speech_like(1.0, rate), rate, kind=kind, codec=codec, **options)
    given = gather([tmp_path])
    assert not given.skips
    assert len(given.manifest) == len(FORMATS)


@pytest.mark.slow
def test_a_folder_of_all_formats_has_one_text(tmp_path, data_root, whisper_tiny_en, run_command):
    source = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")[0]
    speech = read_waveform(source).numpy()
    folder = tmp_path / "audio"
    folder.mkdir()
    for name, kind, codec, rate, options in FORMATS:
        resampled = torch.nn.functional.interpolate(torch.from_numpy(speech)[None, None], scale_factor=rate / RATE)
        encode(folder / name, resampled[0, 0].numpy(), rate, kind=kind, codec=codec, **options)
    out = tmp_path / "out.jsonl"
    done = run_command("transcribe", "model=openai/whisper-tiny.en", f"input=[{folder}]", f"output={out}")
    assert done.returncode == 0, done.stderr[-2000:]
    texts = {row["id"].rsplit("/")[-1]: row["text"].split() for row in map(json.loads, out.open())}
    assert set(texts) == {row[0] for row in FORMATS}
    plain = texts["a.wav"]
    assert len(plain) > 5
    for name, words in texts.items():
        same = sum(word in plain for word in words)
        # Telephone codecs lose the upper band.
        assert same >= len(plain) * (0.6 if "amr" in name else 0.85), (name, words)


# Lengths that a header estimates, or has wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("loud_first", [False, True])
def test_mp3_of_variable_bit_rate_without_its_first_frame_is_read_whole(tmp_path, loud_first):
    noise = 0.3 * np.random.default_rng(0).standard_normal(10 * RATE)
    samples = np.concatenate([noise, 0 * noise] if loud_first else [0 * noise, noise])
    variable = {"global_quality": str(4 * 118), "flags": "+qscale"}
    path = encode(tmp_path / "a.mp3", samples, RATE, codec="libmp3lame", muxer={"write_xing": "0"}, encoder=variable)
    assert not 15 < soundfile.info(path).duration < 25, "the estimate is far off"
    agrees_with_decoding(path, 20.0, tolerance=0.2)
    loud = read_waveform(utterance(path)).square().reshape(-1)[: 19 * RATE]
    assert loud[: 9 * RATE].mean() > 100 * loud[11 * RATE :].mean() or not loud_first


def _mp3(path, seconds=3.0, **muxer):
    return encode(path, speech_like(seconds, RATE), RATE, codec="libmp3lame", kind="mp3", muxer=muxer).read_bytes()


def _wav_header(size, kind=1, bits=16):
    fmt = struct.pack("<IHHIIHH", 16, kind, 1, RATE, RATE * bits // 8, bits // 8, bits)
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", size)


PCM = (speech_like(3.0, RATE) * 32767).astype("<i2").tobytes()
ID3 = b"ID3\x04\x00\x00\x00\x00\x04\x00" + bytes(512)
TAGS = b"APETAGEX" + bytes(range(256)) * 4 + b"TAG" + b"x" * 125


def _flac_without_length(path):
    soundfile.write(path, speech_like(3.0, RATE), RATE, format="FLAC")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return data


def _wav_after_a_tag(path):
    soundfile.write(path, speech_like(3.0, RATE), RATE, format="WAV")
    return ID3 + path.read_bytes()


def _ogg(path, subtype="VORBIS", seconds=1.5):
    soundfile.write(path, speech_like(seconds, RATE), RATE, format="OGG", subtype=subtype)
    return path.read_bytes()


def _streamed_webm(path):
    """As browsers record: the length is not in the header, because the file is not rewound."""
    encode(path, speech_like(3.0, 48000), 48000, codec="libopus", kind="webm", muxer={"live": "1"})
    return path.read_bytes()


LENGTHS = {
    "mp3 with tags, without first frame": (lambda p: ID3 + _mp3(p, write_xing="0") + TAGS, 3.0),
    "mp3 with two tags at its start": (lambda p: ID3 + ID3 + _mp3(p), 3.0),
    "mp3 joined from two": (lambda p: _mp3(p, 1.5) * 2, 3.0),
    "mp3 after zeros": (lambda p: bytes(3000) + _mp3(p, write_xing="0"), 3.0),
    "wav after a tag": (_wav_after_a_tag, 3.0),
    "wav with size 0": (lambda p: _wav_header(0) + PCM, 3.0),
    "wav with the largest size": (lambda p: _wav_header(0xFFFFFFFF) + PCM, 3.0),
    "wav with a size above the file": (lambda p: _wav_header(2 * len(PCM)) + PCM, 3.0),
    "au with unknown size": (lambda p: struct.pack(">4s5I", b".snd", 24, 0xFFFFFFFF, 2, RATE, 1) + PCM[1::2], 3.0),
    "flac without length": (_flac_without_length, 3.0),
    "vorbis joined from two": (lambda p: _ogg(p) * 2, 3.0),
    "opus joined from two": (lambda p: _ogg(p, "OPUS") * 2, 3.0),
    "opus that was cut": (lambda p: _ogg(p, "OPUS", 9.0)[:-5000], 7.5),
    "webm of a browser": (_streamed_webm, 3.0),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_length_is_that_of_decoding(tmp_path, case):
    make, seconds = LENGTHS[case]
    path = tmp_path / "a.audio"
    path.write_bytes(make(path))
    agrees_with_decoding(path, seconds, tolerance=0.9 if "cut" in case else 0.15)


@pytest.mark.parametrize(
    ("subtype", "kind"),
    [
        *((subtype, "WAV") for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")),
        *(("PCM_16", kind) for kind in ("WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "VOC")),
    ],
)
def test_uncompressed_files_are_read_by_soundfile(tmp_path, subtype, kind):
    path = tmp_path / "a"
    soundfile.write(path, speech_like(1.0, RATE), RATE, subtype=subtype, format=kind)
    np.testing.assert_array_equal(read_waveform(utterance(path)), soundfile.read(path, dtype="float32")[0])
    agrees_with_decoding(path, 1.0)


def test_content_decides_and_not_the_suffix(tmp_path):
    encode(tmp_path / "a.m4a", speech_like(1.0, RATE), RATE, codec="aac")
    for name in ("a.mp3", "a.wav", "a:b.flac", "no_suffix", "über %d.ogg"):
        (tmp_path / name).write_bytes((tmp_path / "a.m4a").read_bytes())
        agrees_with_decoding(tmp_path / name, 1.0, tolerance=0.1)


# Parts -----------------------------------------------------------------------------------------------------------


LONG = [
    ("a.m4a", "aac", 16000, None, 0.02),
    ("a.mp3", "libmp3lame", 16000, {"write_xing": "0"}, 1e-6),
    ("x.mp3", "libmp3lame", 16000, None, 1e-6),
    ("a.ogg", "libopus", 48000, None, 1e-3),
    ("a.amr", "libopencore_amrnb", 8000, None, 1e-3),
    ("a.wma", "wmav2", 16000, None, 1e-3),
]


@pytest.mark.parametrize(("name", "codec", "rate", "muxer", "tolerance"), LONG, ids=[row[0] for row in LONG])
def test_parts_have_the_samples_of_the_whole(tmp_path, name, codec, rate, muxer, tolerance):
    bit_rate = {"libopencore_amrnb": 12200, "wmav2": 64000}.get(codec)
    samples = speech_like(130.0, rate)
    path = encode(tmp_path / name, samples, rate, codec=codec, muxer=muxer, bit_rate=bit_rate)
    source = open_source(path)
    whole = source.read(0, source.frames + 1)
    assert len(whole) == source.frames
    # Backward, forward by little, far forward, over the end.
    for seconds in (0, 3.21, 110.333, 20.07, 129.5, 90.9, 91.1, 0.5):
        start = round(seconds * rate)
        part = source.read(start, rate)
        assert part.shape == whole[start : start + rate].shape
        assert np.abs(part - whole[start : start + rate]).max() < tolerance
    source.close()


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "GSM610"), ("AIFF", "GSM610"), ("AU", "G721_32"), ("WAV", "NMS_ADPCM_24"), ("XI", "DPCM_16")],
)
def test_formats_in_which_libsndfile_cannot_seek_are_read(tmp_path, kind, subtype):
    path = tmp_path / "a.wav"
    rate = 44100 if kind == "XI" else 8000
    soundfile.write(path, speech_like(3.0, rate), rate, format=kind, subtype=subtype)
    agrees_with_decoding(path, 3.0, tolerance=0.05)
    source = open_source(path)
    whole = source.read(0, source.frames)
    assert np.abs(whole).max() > 0.1
    for start in (7000, 20, 20, 7100, source.frames - 10, source.frames, 0):
        np.testing.assert_array_equal(source.read(start, 100), whole[start : start + 100])


def test_reading_on_decodes_each_packet_once(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.m4a", speech_like(150.0, 8000), 8000, codec="aac")
    length = audio_duration_s(path)
    fed = []
    plain = ffmpeg._Stream.decoded
    monkeypatch.setattr(ffmpeg._Stream, "decoded", lambda stream, packet: (fed.append(1), plain(stream, packet))[1])
    for start in np.arange(0, length - 10, 5):
        # Windows overlap by half.
        assert len(read_waveform(utterance(path, 10.0, offset=float(start)))) == 10 * RATE
    assert len(fed) < 1.2 * length * 8000 / 1024


def test_a_file_that_changes_is_read_again(tmp_path):
    for level in (0.1, 0.4):
        path = encode(tmp_path / "a.m4a", level * np.ones(8000 * 65), 8000, codec="aac")
        assert float(read_waveform(utterance(path, 1.0, offset=5.0)).mean()) == pytest.approx(level, rel=0.05)


# Files without usable audio -------------------------------------------------------------------------------------------


def _with_video(path, *audio):
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=5)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        streams = [new_stream(container, RATE, codec="aac") for _ in audio]
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for packet in (*video.encode(frame), *video.encode(None)):
            container.mux(packet)
        for stream, samples in zip(streams, audio, strict=True):
            write_stream(container, stream, samples)
    return path


def test_video_is_read_by_its_first_audio_stream(tmp_path):
    tone = speech_like(1.0, RATE)
    path = _with_video(tmp_path / "a.mkv", tone, 0 * tone)
    agrees_with_decoding(path, 1.0, tolerance=0.1)
    assert read_waveform(utterance(path)).abs().max() > 0.1
    with pytest.raises(AudioError, match="no audio stream \\(it has video\\)") as caught:
        read_waveform(utterance(_with_video(tmp_path / "b.mp4")))
    assert caught.value.reason == "not_audio"


def _cut_m4a(path):
    return encode(path, speech_like(1.0, RATE), RATE, codec="aac", kind="ipod").read_bytes()[:2000]


def _m4a_of_noise(path):
    data = bytearray(encode(path, speech_like(3.0, RATE), RATE, codec="aac", kind="ipod").read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = np.random.default_rng(0).bytes(end - start)
    return data


def _unknown_codec(path):
    data = encode(path, speech_like(1.0, RATE), RATE, codec="alac", kind="ipod").read_bytes()
    return data.replace(b"alac", b"xyz1")


BAD = {
    "text": (lambda p: b"hello world\n" * 1000, {"not_audio"}),
    "a playlist": (lambda p: b"ffconcat version 1.0\nfile other.wav\n", {"not_audio"}),
    "random bytes": (lambda p: np.random.default_rng(0).bytes(50_000), {"not_audio", "decode_error"}),
    "zeros": (lambda p: bytes(50_000), {"not_audio"}),
    "an image": (lambda p: b"\x89PNG\r\n\x1a\n" + bytes(2000), {"not_audio"}),
    "m4a without its end": (_cut_m4a, {"not_audio"}),
    "m4a of noise": (_m4a_of_noise, {"decode_error", "no_samples"}),
    "m4a of an unknown codec": (_unknown_codec, {"no_decoder"}),
    "wav of 1 Hz": (
        lambda p: _wav_header(len(PCM)).replace(struct.pack("<I", RATE), b"\1\0\0\0", 1) + PCM,
        {"bad_sample_rate"},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_files_without_usable_audio_have_a_clear_error(tmp_path, case):
    make, reasons = BAD[case]
    path = tmp_path / "a.m4a"
    path.write_bytes(make(path))
    for read in (lambda: audio_duration_s(path), lambda: read_waveform(utterance(path))):
        with pytest.raises(AudioError) as caught:
            read()
        assert caught.value.reason in reasons
        assert "a.m4a" in str(caught.value)


def test_a_damaged_packet_is_left_out_and_noticed(tmp_path):
    path = encode(tmp_path / "a.m4a", speech_like(5.0, RATE), RATE, codec="aac")
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    signals = []
    assert 4.8 * RATE < len(read_waveform(utterance(path), signals=signals)) < 5 * RATE
    assert signals[0].findings() == ["damaged"]


@pytest.mark.parametrize(
    ("name", "kind", "subtype"),
    [
        ("a.wav", "WAV", "PCM_16"),
        ("a.wav", "WAV", "DOUBLE"),
        ("a.aiff", "AIFF", "PCM_24"),
        ("a.ogg", "OGG", "VORBIS"),
        ("a.opus", "OGG", "OPUS"),
        ("a.mp3", "MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_file_that_ends_before_its_header_says_is_noticed(tmp_path, name, kind, subtype):
    path = tmp_path / name
    soundfile.write(path, speech_like(4.0, RATE), RATE, format=kind, subtype=subtype)
    signals = []
    read_waveform(utterance(path), signals=signals)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert 0.9 * RATE < len(read_waveform(utterance(path), signals=signals)) < 3.0 * RATE
    assert [signal.findings() for signal in signals] == [[], ["cut_off"]]


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_stream_without_a_size_is_not_cut_off(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_like(1.0, RATE), RATE)
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", size)
    path.write_bytes(content)
    signals = []
    read_waveform(utterance(path), signals=signals)
    assert signals[0].findings() == []


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.wv", "wavpack"), ("a.mkv", "flac")])
def test_eight_channels_are_read(tmp_path, name, codec):
    """Reading the planes of such a frame by PyAV ends the process."""
    samples = np.stack([speech_like(1.0, 48000, seed) * (1 + seed) / 10 for seed in range(8)])
    path = encode(tmp_path / name, samples, 48000, codec=codec, layout="7.1")
    assert len(read_waveform(utterance(path))) == pytest.approx(RATE, abs=1024 / 3)
    if codec == "flac":
        for channel in range(8):
            found = read_waveform(utterance(path, channel=channel))
            assert float(found.std()) == pytest.approx(samples[channel].std(), rel=0.02)


def test_vorbis_with_a_damaged_header_is_refused(tmp_path):
    """libsndfile opens it, and a seek in it ends the process."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, speech_like(0.5, RATE), RATE, format="OGG", subtype="VORBIS")
    content = path.read_bytes()
    start, refused = content.index(b"\x05vorbis") + 20, 0
    for at in range(start, start + 300, 3):
        path.write_bytes(with_checksums(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]))
        try:
            read_waveform(utterance(path, 0.1, offset=0.2))
        except AudioError:
            refused += 1
    assert refused > 10


# Manifests without durations ---------------------------------------------------------------------------------------


def test_missing_durations_are_measured(tmp_path):
    encode(tmp_path / "a.m4a", speech_like(3.0, RATE), RATE, codec="aac")
    soundfile.write(tmp_path / "b.wav", speech_like(2.0, RATE), RATE)
    lines = [
        {"audio_filepath": "a.m4a", "text": "x"},
        {"audio_filepath": "b.wav", "text": "x", "duration": None},
        {"audio_filepath": "b.wav", "text": "x", "offset": 0.5, "id": "rest"},
        {"audio_filepath": "b.wav", "text": "x", "duration": 1.0, "id": "part"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    manifest = read_manifest(path)
    assert [one.duration for one in manifest] == pytest.approx([3.0, 2.0, 1.5, 1.0], abs=0.08)
    assert manifest.select([1])[0].duration == manifest.durations_N[1] == 2.0
    assert manifest[0].duration == audio_duration_s(tmp_path / "a.m4a")


def test_durations_that_cannot_be_measured_are_reported_by_line(tmp_path):
    soundfile.write(tmp_path / "b.wav", speech_like(1.0, RATE), RATE)
    rows = [("none.wav", 0), ("b.wav", 0), ("b.wav", 2.5)]
    path = tmp_path / "m.jsonl"
    lines = [{"audio_filepath": name, "text": "", "offset": at, "id": str(n)} for n, (name, at) in enumerate(rows)]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserErrors) as caught:
        read_manifest(path)
    assert f"{path}:1: has no 'duration', and its audio cannot be measured: " in str(caught.value)
    assert f"{path}:3: 'offset' is 2.5 s" in str(caught.value)
    assert len(caught.value.errors) == 2
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(ManifestError, match="no such file"):
        read_manifest(path)
    assert np.isnan(read_manifest(path, measure=False)[0].duration)


def test_single_streams_are_read_by_soundfile_and_joined_ones_are_not(tmp_path):
    for subtype in ("VORBIS", "OPUS"):
        data = _ogg(tmp_path / "a.ogg", subtype)
        assert isinstance(open_source(tmp_path / "a.ogg"), SoundfileSource)
        (tmp_path / "joined.ogg").write_bytes(data * 2)
        assert not isinstance(open_source(tmp_path / "joined.ogg"), SoundfileSource)


@pytest.mark.parametrize(("rate", "allowed"), [(999, False), (1000, True), (1_000_000, True), (1_000_001, False)])
def test_sample_rates_between_one_thousand_and_a_million_are_read(tmp_path, rate, allowed):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), rate)
    if allowed:
        assert open_source(tmp_path / "a.wav").rate == rate
    else:
        with pytest.raises(MediaError, match=rf"has a sample rate of {rate:,} Hz, expected 1,000 to 1,000,000 Hz"):
            open_source(tmp_path / "a.wav")


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize("rate", [16000, 44100])  # MPEG-2 and MPEG-1
def test_mp3_is_read_by_soundfile_if_its_first_frame_is_exact(tmp_path, rate, layout):
    samples = np.tile(speech_like(2.0, rate), (1 if layout == "mono" else 2, 1))
    options = {"codec": "libmp3lame", "kind": "mp3", "layout": layout}
    whole = encode(tmp_path / "a.mp3", samples, rate, **options).read_bytes()
    without = encode(tmp_path / "b.mp3", samples, rate, **options, muxer={"write_xing": "0"}).read_bytes()
    cases = {
        "whole": (whole, True),
        "after a tag": (ID3 + whole[whole.index(b"\xff\xf3" if rate == 16000 else b"\xff\xfb") :], True),
        "with a tag after it": (whole + b"TAG" + bytes(125), True),
        "with more after it": (whole + bytes(127), False),
        "without first frame": (without, False),
        "cut": (whole[:-100], False),
    }
    for name, (data, exact) in cases.items():
        (tmp_path / "c.mp3").write_bytes(data)
        assert isinstance(open_source(tmp_path / "c.mp3"), SoundfileSource) == exact, name


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("u8", np.array([0, 64, 128, 192], np.uint8)),
        ("s16", np.array([-(2**15), -(2**14), 0, 2**14], np.int16)),
        ("s32", np.array([-(2**31), -(2**30), 0, 2**30], np.int32)),
        ("flt", np.array([-1.0, -0.5, 0.0, 0.5], np.float32)),
        ("dbl", np.array([-1.0, -0.5, 0.0, 0.5], np.float64)),
    ],
)
@pytest.mark.parametrize("planar", [False, True])
def test_samples_of_every_kind_are_scaled_to_one(kind, values, planar):
    """Two channels with the same samples."""
    rows = np.stack([values, values]) if planar else np.repeat(values, 2)[None]
    frame = av.AudioFrame.from_ndarray(rows, format=kind + "p" * planar, layout="stereo")
    assert ffmpeg._floats(frame).tolist() == [[value, value] for value in (-1.0, -0.5, 0.0, 0.5)]
