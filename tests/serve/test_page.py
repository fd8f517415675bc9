"""The page in a headless Chromium, with a real model and real speech."""

import json

import pytest

from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.model import InferenceOptions, load_model
from tests.serve.served import served, serving

FORM = LongForm(chunk_s=30.0, stride_s=4.0)


@pytest.fixture(scope="module")
def site(whisper_tiny_en, toy_ctc):
    """A server with two models, of which one writes nonsense."""
    tiny = load_model("openai/whisper-tiny.en", InferenceOptions(window="real"))
    with serving([served("tiny", tiny, FORM), served("toy", toy_ctc, FORM)], keys=["secret"]) as (address, _, _lines):
        yield address


@pytest.fixture(scope="module")
def clip(data_root):
    """A recording of some seconds, and its text."""
    folder = data_root / "en_librispeech_mini"
    rows = map(json.loads, (folder / "test.jsonl").read_text().splitlines())
    row = next(row for row in rows if 5 < row["duration"] < 8)
    return folder / row["audio_filepath"]


@pytest.fixture
def page(chromium, site, request):
    """The page, after its key was typed in. Errors of its script fail the test.

    At the width of a phone, the page has its content security policy. `wait_for_function` does not work with it.
    """
    width = getattr(request, "param", 1100)
    context = chromium.new_context(viewport={"width": width, "height": 850}, bypass_csp=width > 500)
    page, errors = context.new_page(), []
    page.on("console", lambda line: errors.append(line.text) if "Content Security" in line.text else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(site)
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    page.wait_for_selector("#first option >> nth=1", state="attached")
    yield page
    context.close()
    assert not errors


def transcribed(page, clip):
    page.set_input_files("#file", clip)
    page.wait_for_selector("#legend:not([hidden])", timeout=120_000)


@pytest.mark.slow
def test_words_follow_the_audio_and_move_it(page, clip):
    transcribed(page, clip)
    texts = page.eval_on_selector_all(".text", "all => all.map(one => one.innerText)")
    assert len(texts) == 2
    words = page.evaluate("results[0].words")
    assert len(words) > 5
    assert all(0 <= word["probability"] <= 1 for word in words)
    assert page.evaluate("peaks.length") > 1000
    # A click on a word plays from its start.
    page.click(".w >> nth=3")
    page.wait_for_function("!audio.paused")
    assert words[3]["start"] <= page.evaluate("audio.currentTime") <= words[3]["start"] + 2
    page.wait_for_selector(".w.now")
    page.evaluate("audio.pause(); audio.currentTime = (results[0].words[4].start + results[0].words[4].end) / 2")
    page.wait_for_function("document.querySelector('.result .w.now')?.textContent === results[0].words[4].word")
    # The words of the other model differ.
    assert page.locator(".w.one").count() > 0
    assert page.locator(".w.two").count() > 0
    assert "only in the first" in page.inner_text("#differences")


@pytest.mark.slow
def test_the_keyboard_reaches_words_and_plays(page, clip):
    transcribed(page, clip)
    page.evaluate("results[0].focus(0)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement === results[0].spans[2]")
    page.keyboard.press("Enter")
    page.wait_for_function("!audio.paused && audio.currentTime >= results[0].words[2].start")
    page.keyboard.press("Space")
    page.wait_for_function("audio.paused")
    page.focus("#wave")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("Number(document.getElementById('wave').getAttribute('aria-valuenow')) < 3")


@pytest.mark.slow
def test_subtitles_are_downloaded(page, clip):
    transcribed(page, clip)
    with page.expect_download() as download:
        page.click("text=SRT >> nth=0")
    text = download.value.path().read_text()
    assert text.startswith("1\n00:00:")
    assert download.value.suggested_filename == f"{clip.stem}.tiny.srt"


@pytest.mark.slow
def test_the_microphone_is_recorded(page):
    page.select_option("#second", "")
    page.click("#record")
    page.wait_for_function("document.getElementById('recordText').textContent.includes('0:01')")
    page.click("#record")
    page.wait_for_selector(".downloads:not([hidden])", timeout=60_000)
    assert page.inner_text("#name").startswith("recording.")


@pytest.mark.slow
@pytest.mark.parametrize("page", [360], indirect=True)
def test_nothing_is_wider_than_a_phone(page, clip):
    transcribed(page, clip)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_errors_are_shown(page, tmp_path):
    (tmp_path / "no.wav").write_bytes(b"no audio")
    page.set_input_files("#file", tmp_path / "no.wav")
    page.wait_for_selector("#message:not([hidden])")
    assert "no.wav: not an audio file" in page.inner_text("#message")
