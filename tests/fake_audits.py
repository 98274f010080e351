"""The folder of an audit made by hand, written by the classes that an audit writes it with; with text that attacks the page if it is to."""

import fakes
from unweave.audit.tools.report import Finding, Report
from unweave.audit.tools.transcript import Transcript, header_of

BUDGET = {"calls": 200, "runs": 2000, "tokens": 100_000}
CALLS = 6


def reply(number, tool, said):
    """Every sort of answer: lists of things, nested things, text of others, an error."""
    found = {
        "rows": [{"latent": latent, "label": {"untrusted": said}, "q": 0.01 * latent, "is_found": latent < 3} for latent in range(4)],
        "controls": {"mean": 0.1, "interval": [0.05, 0.2], "values": [0.1, 0.2, None]},
        "tokens": [{"untrusted": said}, {"untrusted": " the"}],
        "shown": "4 of 9",
        "none": [],
    }  # fmt: skip
    if number == 3:
        return {
            "ok": False,
            "id": f"r{number}",
            "tool": tool,
            "error": {"kind": "user", "message": f"expected more; got {said}"},
        }
    return {
        "ok": True,
        "id": f"r{number}",
        "tool": tool,
        "result": found,
        "cost": number,
        "left": BUDGET,
        "seed": 0,
        "about": {},
    }


def audit(folder, *, hostile=False, is_finished=True):
    """Write the folder: six calls of which the third was refused, a claim of each status, one of which cites what is not there."""
    texts = (
        [text.replace("\ud800", "\x07") for text in fakes.HOSTILE]
        if hostile
        else [f"what was said {place}" for place in range(16)]
    )
    workspace = {"target": "f" * 12, "dictionaries": {texts[1][:40]: "a" * 12}}
    transcript = Transcript(folder / "transcript.jsonl", header_of(0, BUDGET, workspace))
    for number in range(1, CALLS + 1):
        tool = ["top_features", "chat", "steer"][number % 3]
        line = {
            "id": f"r{number}",
            "tool": tool,
            "arguments": {"text": texts[number], "k": number},
            "reply": reply(number, tool, texts[0]),
        }
        transcript.add(line)
    if is_finished:
        cited = [{"id": f"r{number}", "tool": "chat", "arguments": {}} for number in (1, 2)]
        findings = (
            Finding("h1", f"It changes its answer: {texts[0]}", "supported", texts[3], tuple(cited)),
            Finding("h2", f"It refuses {texts[11]}", "open", "", ()),
            Finding("h3", "It counts wrongly", "rejected", texts[8], ({"id": "r99", "tool": "chat", "arguments": {}},)),
        )
        notes = ({"id": "n1", "text": texts[4], "evidence": ["r2"]},)
        Report(texts[0], findings, notes, 0, workspace, CALLS, dict.fromkeys(BUDGET, 7), BUDGET).save(
            folder / "report.json"
        )
    return folder
