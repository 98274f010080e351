"""The nouns of audit draw themselves in a notebook, with their controls, and hostile strings stay text."""

from importlib.metadata import entry_points

import fake_diffs
import fakes
import pytest
from test_viz_drawings import SAFE, Tags
from unweave.audit.labels.result import KINDS, TASKS, Labelling
from unweave.audit.monitor import Calibration, Drift, Watched
from unweave.audit.monitor.drift import drift
from unweave.audit.scratchpad.result import Scratchpad
from unweave.audit.shared_concepts import Shared
from unweave.saes.drawn import GROUP

BAD = fakes.HOSTILE
MORE = SAFE | {"thead", "figure", "figcaption", "svg", "polyline"}
INTERVAL = {"mean": 0.812, "low": 0.7, "high": 0.9, "n": 4}


def labelling():
    one = {"label": INTERVAL, "shuffled": {**INTERVAL, "mean": 0.507}, "gain": {**INTERVAL, "mean": None}}
    row = {"latent": 3, "label": BAD[0], "detection_all": 0.8123, "low": 0.7, "high": 0.9, "shuffled": 0.53}
    return Labelling(
        BAD[1], {task: dict.fromkeys(KINDS, one) for task in TASKS}, [row] * 30, {4: "few"}, [], [], 30, 2, 300, "out"
    )  # fmt: skip


def watched(messages=4):
    known = Calibration(0.6, 0.05, 40, 40, 1, 0.001, 0.13, 72)
    rows = [
        {"item": item, "message": place, "role": "user", "text": BAD[place], BAD[0]: 0.2 * place, "alarms": {BAD[0]: place > 2}}
        for item in range(2)
        for place in range(messages)
    ]  # fmt: skip
    moved = drift([[0.0, 0.2, 0.4, 0.6]] * 4).to_dict()
    return Watched({BAD[0]: {}}, {BAD[0]: known.to_dict()}, rows, {BAD[0]: 2}, 2, {BAD[0]: moved})


def shared():
    row = {"dictionary": BAD[0], "a": BAD[1], "b": "French", "matched": 0.301, "mismatched": 0.102, "gain": 0.199, "low": 0.15,
           "high": 0.25, "q": 0.001, "found": 0.75, "chance": 0.0417}  # fmt: skip
    return Shared([row], {}, 24)


def scratchpad():
    """A Scratchpad that knows what its drawing asks for."""
    row = {
        "sentence": BAD[0],
        "p_after": 0.912,
        "removed": 0.71,
        "replaced": 0.62,
        "reworded": 0.013,
        "q": 0.004,
        "unattended": 0.5,
    }
    made = Scratchpad.__new__(Scratchpad)
    known = {
        "verdict": "faithful",
        "by_seed": ["faithful"] * 2,
        "reasons": [BAD[1]],
        "left_out": {"graph": "no dictionaries"},
    }
    for name, value in {**known, "rows": lambda: [row]}.items():
        object.__setattr__(made, name, value)
    return made


def test_every_noun_of_audit_has_a_drawing():
    found = {entry.name: entry.load() for entry in entry_points(group=GROUP)}
    assert {"Diff", "Drift", "Labelling", "Scratchpad", "Shared", "Watched"} <= found.keys()


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (labelling(), ("chance 0.5", "0.812 [0.7, 0.9]", "0.507 [0.7, 0.9]", "2 of 300", BAD[0], "20 of 30")),
        (watched(), ("0.6", "0.025 [0.001, 0.13]", "0.2 [0.2, 0.2], p", "0.6 !", BAD[0], "user")),
        (shared(), ("0.301", "0.102", "0.199 [0.15, 0.25]", "0.0417", BAD[0])),
        (scratchpad(), ("faithful, faithful", BAD[1], "no dictionaries", "0.912", "0.71", "0.013", "0.004", BAD[0])),
        (Drift(0.5, 0.4, 0.6, 0.001, -0.1, 0.1, 4, 20), ("rises", "0.5 [0.4, 0.6]", "-0.1 to 0.1", "0.001")),
        (Drift(0.5, 0.4, 0.6, 0.2, -0.7, 0.7, 4, 20), ("none beyond", "0.2")),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_a_table_has_the_numbers_and_their_controls(thing, words):
    tags = Tags(thing._repr_html_())
    text = " ".join(tags.text)
    assert [word for word in words if word not in text] == []
    assert "not drawn" not in text
    assert {tag for tag, _ in tags.found} <= MORE
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]


def test_curves_are_drawn_where_there_is_a_conversation():
    points = [one["points"] for tag, one in Tags(watched()._repr_html_()).found if tag == "polyline"]
    assert len(points) == 3  # two conversations and the threshold
    assert points[0] == points[1] and len(points[0].split()) == 4
    (level,) = {place.split(",")[1] for place in points[2].split()}
    assert float(level) == pytest.approx(8)  # the threshold 0.6 is the largest value: at the top edge
    assert "<polyline" not in watched(messages=1)._repr_html_()


def test_a_diff_is_its_page_in_a_frame():
    for method in fake_diffs.LATENTS:
        html = fake_diffs.diff(method, hostile=True)._repr_html_()
        ((tag, attributes),) = Tags(html).found
        assert tag == "iframe"
        assert attributes["sandbox"] == "allow-scripts allow-forms allow-downloads"
        assert 'data-pane="diff"' in attributes["srcdoc"]
        assert len(html) < 1_500_000
