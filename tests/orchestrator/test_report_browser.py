"""The report as a browser lays it out: no text lies over another, none is too small, nothing sticks out of the page."""

import asyncio
import html
import json
import re
import shutil
import subprocess

import pytest

from orchestrator.report import write_report
from tests.orchestrator.run_driver import drive_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")]

MEASURE = """
<script>
const boxes = [...document.querySelectorAll('svg text, h1, h2, h3, td, th, p')].filter(e => e.textContent.trim());
const rects = boxes.map(e => {
  const svg = e instanceof SVGElement, range = document.createRange();
  range.selectNodeContents(e);
  const r = (svg ? e : range).getBoundingClientRect();
  const to = svg ? e.getScreenCTM() : null;
  const letter = svg ? parseFloat(getComputedStyle(e).fontSize) * Math.hypot(to.a, to.b) : 0;
  return {text: e.textContent.trim(), svg, letter, left: r.left, top: r.top, right: r.right, bottom: r.bottom};
});
const overlaps = [];
for (let i = 0; i < rects.length; i++) for (let j = i + 1; j < rects.length; j++) {
  const a = rects[i], b = rects[j];
  const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  if (wide > 2 && high > 3) overlaps.push([a.text, b.text, wide, high]);
}
const panels = [...document.querySelectorAll('[id*="axes_"]')].map(e => ({id: e.id,
  drawn: e.querySelectorAll('[id*="series:"]').length, wide: e.getBoundingClientRect().width}));
document.title = JSON.stringify({overlaps, rects, panels, page: document.documentElement.clientWidth,
                                 scroll: document.documentElement.scrollWidth});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a driven run with a script that measures it."""
    folder = tmp_path_factory.mktemp("report") / "run"
    with pytest.MonkeyPatch.context() as patched:
        asyncio.run(drive_run(folder, patched))
    path = write_report(folder)
    path.write_text(path.read_text().replace("</body>", f"{MEASURE}</body>"))
    return path


def measured(page, width: int) -> dict:
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    return json.loads(html.unescape(title[1]))


@pytest.mark.parametrize("width", [1280, 900])
def test_every_text_can_be_read(page, width):
    found = measured(page, width)
    assert not found["overlaps"], found["overlaps"][:5]
    texts = [rect for rect in found["rects"] if rect["svg"]]
    assert len(texts) > 100
    small = [(rect["text"], rect["letter"]) for rect in texts if rect["letter"] < (8 if width >= 1280 else 6)]
    assert not small, f"too small to read: {small[:5]}"
    outside = [rect["text"] for rect in found["rects"] if rect["right"] > found["page"] + 1 or rect["left"] < 0]
    assert not outside, f"beyond the page: {outside[:5]}"
    assert found["scroll"] <= found["page"], "the page has to be scrolled sideways"
    assert found["panels"]
    empty = [panel["id"] for panel in found["panels"] if not panel["drawn"]]
    assert not empty, f"panels without a series: {empty}"
