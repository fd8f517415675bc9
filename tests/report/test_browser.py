"""The page in a headless Chromium, opened from a file."""

import pytest

from ssl_asr.commands.report import report
from ssl_asr.config.tools import ReportConfig
from tests.report.runs import make_run


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of a run, and of a sweep."""
    folder = tmp_path_factory.mktemp("pages")
    for number, wrong in enumerate((1, 4)):
        make_run(folder / "sweep" / str(number), wrong, overrides=[f"seed={number}"], number=number)
    found = {"run": [str(folder / "sweep" / "0")], "sweep": [str(folder / "sweep")]}
    for name, runs in found.items():
        report(ReportConfig(runs=runs, output=str(folder / f"{name}.html"), verbose=False), folder)
    return folder


@pytest.fixture
def opened(chromium, pages, request):
    """A page. It may load nothing, and its script has no errors."""
    name, width, colors = request.param
    context = chromium.new_context(viewport={"width": width, "height": 850}, color_scheme=colors)
    page, said = context.new_page(), []
    page.on("console", lambda line: said.append(line.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda sent: said.append(sent.url) if not sent.url.startswith(("data:", "file:")) else None)
    page.goto((pages / f"{name}.html").as_uri())
    yield page
    context.close()
    assert not said


VIEWS = [("run", 1280, "light"), ("run", 390, "dark"), ("sweep", 1280, "dark"), ("sweep", 390, "light")]


@pytest.mark.slow
@pytest.mark.parametrize("opened", VIEWS, indirect=True)
def test_the_page_is_no_wider_than_the_window(opened):
    for summary in opened.query_selector_all("summary"):
        summary.click()
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.viewport_size["width"]


@pytest.mark.slow
@pytest.mark.parametrize("opened", VIEWS[:1], indirect=True)
def test_curves_show_values_and_hide_on_a_click(opened):
    box = opened.locator(".chart svg.plot").first.bounding_box()
    opened.mouse.move(box["x"] + box["width"] - 12, box["y"] + 40)
    assert opened.locator(".tip").first.inner_text().splitlines() == ["update: 40", "train: 0.05", "dev: 0.075"]
    opened.click(".legend button >> nth=0")
    assert opened.locator(".chart g[data-i='0']").first.get_attribute("class") == "c0 hidden"
    opened.mouse.move(box["x"] + box["width"] - 14, box["y"] + 40)
    assert opened.locator(".tip").first.inner_text().splitlines() == ["update: 40", "dev: 0.075"]


@pytest.mark.slow
@pytest.mark.parametrize("opened", VIEWS[:1], indirect=True)
def test_embedded_audio_plays(opened):
    duration = """async () => {
        const audio = document.querySelector('audio');
        audio.preload = 'auto';
        const loaded = new Promise((done, failed) => { audio.onloadedmetadata = done; audio.onerror = failed; });
        audio.load();
        await loaded;
        return audio.duration;
    }"""
    assert opened.evaluate(duration) > 0.9
