"""A live host whose model is a table, behind the real server, and a browser before it: for tests of the prompt page."""

import contextlib
import math
import shutil
import threading
import time

import fakes
import pytest
from unweave.saes import UserError
from unweave.viz.live import Live
from unweave.viz.server import application
from unweave.viz.text import visible
from unweave.viz.things import open_things

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TEXT = "The capital of France is"
ASKED = "#pane=prompt&store=1&prompt=The%20capital%20of%20France%20is"


class Fake(Live):
    """A live host whose model is a table: it answers at once, remembers what it was asked, and attacks the page."""

    def __init__(self, things):
        super().__init__(things)
        self.heard, self.gate = [], threading.Event()
        self.gate.set()

    def abilities(self):
        return {"features", "steer", "generate"}

    def features(self, body):
        self.heard.append(("features", body))
        self.gate.wait(10)
        text = body.get("text") or body["messages"][0]["content"]
        if "wrong" in text:
            raise UserError(f"expected something else; got {fakes.HOSTILE[0]}; mend it")
        tokens = ["<|endoftext|>", *(" " + word for word in text.split(" ")), *fakes.HOSTILE]
        latents = [[(place * 7 + number * 7) % 60 + 2 for number in range(24)] for place in range(len(tokens))]
        rows = [[row(latent, 9 - number / 4) for number, latent in enumerate(own)] for own in latents]
        found = sorted({latent for own in latents[1:] for latent in own})
        likely = [" Paris", " a", *fakes.HOSTILE[:6]]
        return {
            "tokens": [visible(token) for token in tokens],
            "kept": [place > 0 for place in range(len(tokens))],
            "rank": body["rank"],
            "target": str(body.get("target") or " Paris"),
            "target_ids": [body.get("target") or 7],
            "position": len(tokens) - 1,
            "value": 12.25,
            "features": rows,
            "complete": True,
            "totals": [[latent, 3, 2, latent / 10, bits(latent), latent / 20] for latent in found],
            "rest": [0.0] * len(tokens),
            "next": [
                {"token": visible(token), "id": 7 + place, "probability": 0.6 / (place + 1)}
                for place, token in enumerate(likely)
            ],
            "chat": True,
        }

    def steer(self, body):
        self.heard.append(("steer", body))
        if not all(edit["latent"] < 64 for edit in body["edits"]):
            raise UserError("expected a latent below 64; got another; choose one")
        controls = [
            {"kl": 0.01 * place, "change": 0.1 * (place - 3), "kind": "random"} for place in range(body["controls"])
        ]
        controls += [
            {"kl": 0.05 * place, "change": 0.2 * (place - 3), "kind": "latents"} for place in range(body["latents"])
        ]
        moves = [
            {"token": visible(token), "id": place, "before": 0.1, "after": 0.2, "change": 2.0 - place}
            | {"control_low": -0.1, "control_high": 0.2}
            for place, token in enumerate([" London", *fakes.HOSTILE[:4]])
        ]
        side = {
            "kl": 0.22,
            "kl_tokens": [0.0] * 21 + [0.22],
            "change": -1.5,
            "controls": controls,
            "size": 1.7,
            "raised": moves,
            "lowered": moves,
        }
        tokens = [" Paris", " London", *fakes.HOSTILE[:6]]
        return {"target": " Paris", "target_ids": [7], "frozen": {**side, "kl": 0.12}, "free": side,
                "tokens": [{"token": visible(token), "id": 7 + place, "base": 0.6 / (place + 1), "frozen": 0.3, "free": 0.1 * place}
                           for place, token in enumerate(tokens)]}  # fmt: skip

    def generate(self, body):
        self.heard.append(("generate", body))
        for place in range(body["tokens"]):
            yield {"which": "base", "piece": fakes.HOSTILE[place % 5]}
            yield {"which": "changed", "piece": f" word{place}\n"}
            time.sleep(0.02)
            if body["seed"] == 13 and place == 2:
                raise UserError("expected a luckier seed; got 13; take another")
        yield {"done": True}


def bits(latent):
    return 2 + math.log2(latent + 1)


def row(latent, value):
    """One latent on one token; latent 61 is stronger than ever in the corpus, odd ones speak against the target."""
    most = None if latent == 61 else bits(latent) + 0.5
    return [latent, value, bits(latent), bits(latent) - 0.5, most, (-1) ** latent * latent / 40]


@contextlib.contextmanager
def serving(live):
    """The address at which the real server answers for `live`."""
    import uvicorn

    config = uvicorn.Config(application(live.things, "secret", live), log_level="warning", port=0, access_log=False)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/secret/"
    server.should_exit = True


@contextlib.contextmanager
def launched():
    """A browser; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Desk:
    """One tab on a live host: opens states of the prompt page, and in the end the page must have done nothing wrong."""

    def __init__(self, browser, live, address, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.tab, self.live, self.address, self.wrong = self.context.new_page(), live, address, []
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.tab.on("console", self._console)
        self.tab.on("request", self._request)

    def _console(self, message):
        if (
            message.type in ("error", "warning") and "400" not in message.text
        ):  # an answer 400 is told by the browser too
            self.wrong.append(message.text)

    def _request(self, request):
        if not request.url.startswith((self.address, "about:")):
            self.wrong.append(request.url)

    def open(self, hash=ASKED):
        self.tab.goto("about:blank")
        self.tab.goto(self.address + hash)
        self.tab.wait_for_selector("body[data-ready=yes]")
        return self

    def read(self, more="", base=ASKED):
        """Open a prompt and wait for its latents."""
        self.open(base + more)
        self.id("prompt-latent").first.wait_for()
        return self

    def id(self, testid):
        return self.tab.get_by_test_id(testid)

    def press(self, *names):
        for name in names:
            self.tab.keyboard.press(name)

    def says(self, testid, words):
        from playwright.sync_api import expect

        expect(self.id(testid)).to_contain_text(words, timeout=10_000)

    def latents(self):
        return [int(row.get_attribute("data-latent")) for row in self.id("prompt-latent").all()]

    def heard(self, name):
        """The bodies of the requests of one name."""
        return [body for heard, body in self.live.heard if heard == name]

    def close(self):
        assert self.tab.evaluate("window.__pwned") is None
        assert not self.wrong
        self.context.close()


@contextlib.contextmanager
def desk(folder):
    """A Desk before a Fake of a hostile demo in `folder`."""
    live = Fake(open_things([fakes.demo(folder, hostile=True)]))
    with serving(live) as address, launched() as browser:
        found = Desk(browser, live, address)
        yield found
        found.context.close()
