"""The notebook's widget: the page in a sandboxed frame asks, relay.js carries, Python answers; hostile data stay inside."""

import shutil
import threading
from pathlib import Path

import fakes
import pytest
from unweave.saes import UserError
from unweave.viz.actions.registry import ACTIONS, STREAMS
from unweave.viz.display import Embedded, show
from unweave.viz.things import open_things

pytest.importorskip("anywidget", reason="anywidget is missing: pip install anywidget")
from unweave.viz.widget import Browser

HOST = """<!doctype html><meta charset="utf-8"><body><div id="out"></div><script type="module">
const [source, page] = await Promise.all([window.pyRelay(), window.pyPage()]);
const widget = (await import("data:text/javascript;base64," + source)).default;
const heard = new Set();
const model = {
  get: (name) => ({ page, height: 600 })[name],
  on: (_, run) => heard.add(run), off: (_, run) => heard.delete(run),
  async send(message) {
    for (const [reply, bytes] of await window.pyAsk(message)) {
      const buffers = bytes ? [new DataView(Uint8Array.from(bytes).buffer)] : [];
      for (const run of heard) run(reply, buffers);
    }
  },
};
window.close_ = widget.render({ model, el: document.getElementById("out") });
window.heard = heard;
</script>"""


@pytest.fixture
def browser(tmp_path):
    widget = Browser(open_things([fakes.demo(tmp_path, hostile=True)]))
    widget.sent = []
    widget.send = lambda message, buffers=None: widget.sent.append((message, buffers))
    return widget


def replies(widget, **message):
    widget.sent.clear()
    widget._reply({"unweave": "ask", "id": 7, **message})
    return widget.sent


def test_questions_are_answered(browser):
    assert replies(browser, verb="get", path="index")[0][0]["answer"]["title"] == "Unweave demo"
    message, buffers = replies(browser, verb="get", path="stores/1/columns/density")[0]
    assert message == {"id": 7, "bytes": True}
    assert len(buffers[0]) == 4 * 64
    assert replies(browser, verb="get", path="stores/9")[0][0] == {"id": 7, "answer": None}
    assert replies(browser, verb="../x", path="index")[0][0] == {"id": 7, "answer": None}


def test_actions_and_streams(browser, monkeypatch):
    monkeypatch.setitem(ACTIONS, "double", lambda live, body: {"twice": 2 * body["n"]})
    closed = threading.Event()

    def count(live, body):
        try:
            yield from ({"n": n} for n in range(10**9))
        finally:
            closed.set()

    monkeypatch.setitem(STREAMS, "count", count)
    assert replies(browser, verb="post", path="act/double", body={"n": 4})[0][0]["answer"] == {"twice": 8}
    assert "expected a JSON object" in replies(browser, verb="post", path="act/double", body=[1])[0][0]["error"]
    browser.sent.clear()
    browser._hear(None, {"unweave": "ask", "id": 8, "verb": "lines", "path": "stream/count", "body": {}}, None)
    while len(browser.sent) < 5:
        pass
    browser._hear(None, {"unweave": "stop", "id": 8}, None)
    assert closed.wait(5)
    assert browser.sent[0][0] == {"id": 8, "line": {"n": 0}}


@pytest.mark.parametrize("message", ["x", None, {"id": "7"}, {"verb": "get"}, {"id": None}])
def test_messages_that_mean_nothing_are_ignored(browser, message):
    browser._hear(None, message, None)
    assert not browser.sent


def test_a_failure_is_told(browser, monkeypatch):
    def fail(live, body):
        raise UserError("expected that; got this; do so")

    monkeypatch.setitem(ACTIONS, "fail", fail)
    assert replies(browser, verb="post", path="act/fail", body={})[0][0]["error"].startswith("expected that")


def test_show_in_a_notebook(monkeypatch, tmp_path):
    monkeypatch.setattr("unweave.viz.display.in_notebook", lambda: True)
    store = fakes.store(tmp_path / "features")
    assert isinstance(show(store), Browser)
    assert isinstance(show(store, live=False), Embedded)
    monkeypatch.setattr("unweave.viz.display.find_spec", lambda name: None)
    assert isinstance(show(store), Embedded)


def test_the_frame_asks_through_the_relay(browser, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    import base64

    import unweave.viz.widget as module

    relay = (Path(module.__file__).parent / "relay.js").read_bytes()

    def ask(message):
        if message.get("unweave") == "stop":
            return []
        browser.sent.clear()
        browser._reply(message)
        return [[reply, list(buffers[0]) if buffers else None] for reply, buffers in browser.sent]

    (tmp_path / "host.html").write_text(HOST, encoding="utf-8")
    wrong = []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1200, "height": 800})
        tab.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.expose_function("pyAsk", ask)
        tab.expose_function("pyRelay", lambda: base64.b64encode(relay).decode())
        tab.expose_function("pyPage", lambda: browser.page)
        tab.goto((tmp_path / "host.html").as_uri())
        frame = tab.frame_locator("iframe")
        frame.get_by_test_id("tab-latents").click(timeout=60_000)
        frame.get_by_test_id("latent-row").nth(2).click()
        frame.get_by_test_id("card").wait_for()
        frame.get_by_test_id("tab-training").click()
        frame.locator(".main-svg").first.wait_for(timeout=60_000)  # plotly came as text, and its hash let it run
        assert tab.evaluate("window.__pwned") is None
        assert not wrong
        tab.evaluate("window.close_()")
        assert tab.evaluate("window.heard.size") == 0
        chromium.close()
