"""The budgets of the browser over 131,072 latents, in a real Chromium.

Each time is the best of a few tries, for a machine that does other things too. Beside every try a fixed piece of work is done in the
same page (elements are made, laid out, taken away); where even that took longer than USUAL, the budget grows in proportion, so that
it says something of the browser and not of the machine's load.
"""

import statistics

import pytest
from fake_live import serving
from large_store import MANY, mapped, tiled
from unweave.viz.live import Live
from unweave.viz.things import open_things

USUAL = 21.0  # ms that WORK takes on two idle cores (AMD EPYC, headless Chromium: 20.2 to 23.5)
WORK = """() => {
  const start = performance.now();
  const box = document.body.appendChild(document.createElement("div"));
  for (let row = 0; row < 1500; row += 1) box.appendChild(document.createElement("p")).textContent = `row ${row} of a fixed piece of work`;
  const tall = box.offsetHeight;
  box.remove();
  return performance.now() - start + 0 * tall;
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    store = mapped(tiled(tmp_path_factory.mktemp("many")))
    with serving(Live(open_things([store]))) as found:
        yield found


@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context.new_page()
    context.close()


def within(budget, times, work):
    """Whether the best of the times is within the budget, which grows where the fixed work was slow in that try."""
    allowed = [budget * max(took / USUAL, 1) for took in work]
    return any(time <= limit for time, limit in zip(times, allowed, strict=True)), (times, work)


def opened(tab, address, hash):
    tab.goto("about:blank")
    tab.goto(address + hash)
    tab.wait_for_selector("body[data-ready=yes]", timeout=30_000)


def tries(measure, budget, most=6):
    """Try until one time is within its budget; the first only warms the server."""
    measure(0)
    times, work = [], []
    for turn in range(1, most):
        time, took = measure(turn)
        times.append(time)
        work.append(took)
        if within(budget, times, work)[0]:
            break
    return within(budget, times, work)


def test_a_feature_page_is_painted_within_300_ms(tab, address):
    def measure(turn):
        opened(tab, address, f"#pane=latents&latent={700 + turn}")
        for _ in range(200):
            if marks := tab.evaluate("() => performance.getEntriesByName('unweave-card').map((one) => one.startTime)"):
                break
            tab.wait_for_timeout(20)
        return marks[0], min(tab.evaluate(WORK) for _ in range(3))

    is_within, measured = tries(measure, 300)
    assert is_within, measured


PRESS = """key => new Promise((resolve) => {
  const before = document.querySelector("[data-testid=card]").dataset.latent;
  const start = performance.now();
  const watch = new MutationObserver(() => {
    const now = document.querySelector("[data-testid=card]");
    if (!now || now.dataset.latent === before) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
  });
  watch.observe(document.body, { childList: true, subtree: true });
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
})"""


def test_a_key_shows_another_latent_within_100_ms(tab, address):
    opened(tab, address, "#pane=latents&latent=777")
    tab.get_by_test_id("latent-row").first.wait_for()
    tab.wait_for_timeout(300)

    def measure(_):
        took = [tab.evaluate(PRESS, key) for key in ("j", "j", "k", "j", "PageDown", "j", "k")]
        return statistics.median(took), min(tab.evaluate(WORK) for _ in range(3))

    is_within, measured = tries(measure, 100)
    assert is_within, measured


def test_the_list_scrolls_with_few_rows(tab, address):
    opened(tab, address, "#pane=latents&latent=3&sort=latent")
    tab.get_by_test_id("latent-row").first.wait_for()
    scroll = "share => { const box = document.querySelector('.rows'); box.scrollTop = share * box.scrollHeight; }"
    for share in (0, 0.3, 0.7, 1):
        tab.evaluate(scroll, share)
        tab.wait_for_timeout(120)
        rows = tab.evaluate(
            "() => [...document.querySelectorAll('[data-testid=latent-row]')].map((row) => Number(row.dataset.latent))"
        )
        assert 0 < len(rows) < 200
        assert rows[0] <= share * MANY <= rows[-1] + 1
    assert tab.evaluate("() => document.querySelectorAll('*').length") < 5000


def test_a_map_of_all_is_drawn_within_2_s_and_moves(tab, address):
    def measure(_):
        opened(tab, address, "#pane=map")
        tab.wait_for_selector("[data-testid=map-box][data-drawn]", timeout=30_000)
        return tab.evaluate("performance.now()"), min(tab.evaluate(WORK) for _ in range(3))

    is_within, measured = tries(measure, 2000, most=4)
    assert is_within, measured
    box = tab.get_by_test_id("map-box")
    assert box.get_attribute("data-drawn") == str(MANY)
    tab.mouse.move(500, 400)
    tab.mouse.down()
    frames = []
    for step in range(12):
        tab.mouse.move(500 + 9 * step, 400 + 4 * step)
        frames.append(float(box.get_attribute("data-frame")))
    tab.mouse.up()
    work = min(tab.evaluate(WORK) for _ in range(3))
    assert statistics.median(frames) <= 60 * max(work / USUAL, 1), (frames, work)


def test_memory_stays_bounded(tab, address):
    opened(tab, address, "#pane=latents&latent=0&sort=latent")
    tab.get_by_test_id("latent-row").first.wait_for()
    known = tab.evaluate("""async () => {
      const { ask, remembered } = modules["transport.js"];
      for (let latent = 0; latent < 600; latent += 1) await ask(`stores/0/rows/${latent}`);
      return remembered();
    }""")
    assert known <= 400
