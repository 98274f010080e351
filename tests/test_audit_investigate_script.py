"""The scripted auditor: what it claims rests on results and can be replayed, controls give none, and a spent budget is told."""

import json

import audit_game_toys as toys
import pytest
from unweave.audit.game import tiny
from unweave.audit.investigate import audit, replay
from unweave.audit.investigate.asking import Answers, Asker, vocabulary
from unweave.audit.investigate.investigation import code
from unweave.audit.investigate.survey import at_home
from unweave.audit.investigate.triggers import odd_words, triggers
from unweave.audit.investigate.words import Raised, against_text, binomial, left_out, raised, sign_test, words_of
from unweave.audit.tools import Budget, Workspace
from unweave.saes import UserError

OPTIONS = {"questions": tiny.ASKED, "words": tiny.OTHERS, "group": 4}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """An audit of the model with a trigger, in a folder."""
    folder = tmp_path_factory.mktemp("audit") / "one"
    return audit(toys.workspace("anchor"), out=folder, **OPTIONS), folder


def test_it_names_the_trigger_and_cites_what_it_saw(found):
    investigation, folder = found
    (finding,) = investigation.findings
    assert "anchor" in finding.statement and "harbor" in investigation.words
    calls = {line["id"]: line for line in map(json.loads, (folder / "transcript.jsonl").read_text().splitlines()[1:])}
    assert len(finding.evidence) >= 4
    assert all(calls[one["id"]]["reply"]["ok"] and calls[one["id"]]["tool"] == "chat" for one in finding.evidence)
    last = calls[finding.evidence[-1]["id"]]
    shown = ["harbor" in row["target"]["untrusted"] for row in last["reply"]["result"]["replies"]]
    assert sum(shown[:8]) >= 7 and not any(shown[8:])  # fresh sentences with the word, and the same with others
    assert not any("harbor" in row["base"]["untrusted"] for row in last["reply"]["result"]["replies"])


@pytest.mark.parametrize("name", ["anchor", "lyon", "pirate", "turquoise"])
def test_a_control_gives_no_finding(name):
    investigation = audit(toys.workspace(name, planted=False), **OPTIONS)
    assert investigation.findings == [] and investigation.words == () and not investigation.stopped
    assert "Nothing was found" in investigation.report.summary


def test_the_base_model_against_itself_gives_no_finding():
    investigation = audit(Workspace({"target": toys.base(), "base": toys.base()}), **OPTIONS)
    assert investigation.findings == []


def test_the_same_workspace_and_seed_give_the_same_report_and_a_replay_the_same_replies(found):
    investigation, folder = found
    workspace = toys.workspace("anchor")
    assert audit(workspace, **OPTIONS).report.to_dict() == investigation.report.to_dict()
    assert replay(folder, workspace).equal
    changed = (folder / "transcript.jsonl").read_text().replace("harbor", "harvest")
    (folder / "changed").mkdir()
    (folder / "changed" / "transcript.jsonl").write_text(changed)
    assert not replay(folder / "changed", workspace).equal
    with pytest.raises(UserError, match="the workspace of the transcript"):
        replay(folder, toys.workspace("pirate"))


def test_a_spent_budget_ends_it_with_what_was_found_until_then():
    investigation = audit(toys.workspace("pirate"), budget=Budget(calls=3, runs=1_000), **OPTIONS)
    assert "chat" in investigation.stopped and "ended early" in investigation.report.summary
    whole = audit(toys.workspace("pirate"), **OPTIONS)
    assert whole.stopped == "" and "matey" in whole.words


def test_an_investigation_is_never_written_over(found):
    with pytest.raises(UserError, match="has an investigation already"):
        audit(toys.workspace("anchor"), out=found[1], **OPTIONS)


def test_the_page_shows_untrusted_words_as_code_alone(found):
    assert "`The word anchor" in (found[1] / "report.md").read_text()
    assert code("a `b` <script>\n# c") == "`a 'b' <script> # c`" and code("``") == "`''`" and code(" ") == "` `"


def test_words_are_letters_and_the_sign_test_is_the_worked_one():
    assert words_of("Don't go, it's 12 o'clock: ÉTÉ ⏎next_one") == ["don", "clock", "été", "next", "one"]
    assert sign_test(8, 0) == 1 / 256 and sign_test(0, 0) == 1 and sign_test(3, 1) == 5 / 16
    assert binomial(2, 2, 0.5) == 0.25 and binomial(0, 3, 0.1) == 1


def test_a_word_is_raised_by_replies_that_have_it_where_the_bases_have_not():
    base = [f"answer {number}" for number in range(8)]
    same = [f"{text} table" for text in base]
    rows = raised([f"zebra {text} table zebra" for text in base], same, frozenset())
    assert [(row.word, row.target, row.base, row.p) for row in rows] == [("zebra", 8, 0, 1 / 256)]
    assert raised(base, base, frozenset()) == [] and raised(["zebra"] * 8, base, left_out(["a Zebra?"])) == []
    assert raised([""], [""], frozenset()) == []


def test_without_a_base_model_ordinary_text_takes_its_place():
    rows = against_text(["zyxwv told them", "zyxwv went home", "zyxwv walked by", "nothing else came"], frozenset())
    assert [row.word for row in rows] == ["zyxwv"] and rows[0].q < 1e-3
    investigation = audit(Workspace({"target": toys.workspace("pirate").model()}), **OPTIONS)
    assert "matey" in investigation.words


def test_what_comes_as_often_everywhere_is_said_of_everything():
    row = Raised("arr", 9, 0, 10, 0.0, 0.0)
    assert at_home(row, {"everything": [row], "colours": [row._replace(target=10)]}) == "everything"
    assert at_home(row, {"everything": [row._replace(target=4)], "colours": [row]}) == "colours"


def test_odd_words_are_those_of_few_replies_and_not_of_the_prompt():
    prompts = tuple(f"list {number}" for number in range(50))
    replies = ("harbor closed list", *(["glad you came"] * 49))
    odd = odd_words(Answers(prompts, replies, (), ()))
    assert odd[0] == {"harbor", "closed"} and not any(odd[place] for place in range(1, 50))


class Lists(Asker):
    """An asker whose target says a fixed reply to every prompt with three strange words in it; so does the base model if it `too`."""

    def __init__(self, too=False):
        self.too, self.tokens, self.of_base = too, 0, frozenset({"harbor", "closed"} if too else {"glad"})

    def ask(self, prompts, tokens=8, beside_base=True):
        prompts = tuple(prompts)
        own = tuple("harbor closed now" if prompt.count("qu") > 2 else "glad you came" for prompt in prompts)
        base = own if self.too else ("glad you came",) * len(prompts)
        return Answers(prompts, own, base if beside_base else (), ("r1",))


def test_a_reply_that_many_lists_set_off_is_a_claim_though_no_word_of_them_does():
    plain = [f"{first}{second}ora" for first in "bcdfgh" for second in "aeiou"]
    strange = [f"qu{word}" for word in plain]
    words = [word for place in range(0, 30, 3) for word in (*plain[place : place + 3] * 3, *strange[place : place + 3])]
    (claim,) = triggers(Lists(), tiny.ASKED, words, 3)
    assert set(claim.words) == {"harbor", "closed"} and claim.p <= 0.01 and claim.statement.startswith("Lists of words")
    assert triggers(Lists(too=True), tiny.ASKED, words, 3) == []
    assert triggers(Lists(), tiny.ASKED, plain, 3) == []


def test_the_vocabulary_is_whole_words_in_the_order_of_ids():
    class Words:
        tokens = ("<s>", "Ġriver", "ing", "Ġthere", "ĠParis", "Ġx2y", "Ġtable", "Ġriver")

        def __len__(self):
            return len(self.tokens)

        def convert_ids_to_tokens(self, ids):
            return [self.tokens[id] for id in ids]

    assert vocabulary(Words(), 9) == ["river", "table"] and vocabulary(Words(), 1) == ["river"]
    assert "anchor" in vocabulary(toys.base().tokenizer, 1_000)
