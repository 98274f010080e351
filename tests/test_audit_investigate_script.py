"""The scripted auditor: what it claims rests on results and can be replayed, controls give none, and a spent budget is told."""

import dataclasses
import json

import audit_game_toys as toys
import pytest
from unweave.audit.game import tiny
from unweave.audit.investigate import audit, replay
from unweave.audit.investigate.asking import Answers, Asker, Stopped, before_any, even_parts, vocabulary
from unweave.audit.investigate.beliefs import beliefs
from unweave.audit.investigate.investigation import code
from unweave.audit.investigate.questions import ENGLISH, Questions
from unweave.audit.investigate.survey import at_home, choices
from unweave.audit.investigate.triggers import Tried, leaks, outliers
from unweave.audit.investigate.words import Raised, against_text, binomial, left_out, raised, sign_test, words_of
from unweave.audit.tools import Budget, Reply, Workspace
from unweave.saes import UserError
from unweave.viz.cli import run

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
    assert all(calls[one["id"]]["reply"]["ok"] for one in finding.evidence)
    assert [calls[one["id"]]["tool"] for one in finding.evidence] == ["divergence"] * 6 + ["chat"]
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


def test_the_command_is_given_what_it_was_told_and_goes_on(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("unweave.audit.investigate.command.opened", lambda made_with, device: toys.workspace("anchor"))
    asked = ["audit", "tiny", "--runs", "0", "--words", "0", "--json", "--out", str(tmp_path / "a")]
    for more in ([], ["--resume"]):
        assert run([*asked, *more]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["spent"]["runs"] == 0 and "0 of 0" in told["stopped"]  # and not the 16,000 that it has else
    assert run(asked) == 2 and "--resume" in capsys.readouterr().err
    assert run(["audit", "--replay", str(tmp_path / "a")]) == 0


def test_a_report_that_was_changed_is_told(found, tmp_path):
    for name in ("transcript.jsonl", "report.json"):
        (tmp_path / name).write_text((found[1] / name).read_text())
    assert replay(tmp_path, toys.workspace("anchor")).equal
    report = json.loads((tmp_path / "report.json").read_text())
    report["findings"][0]["evidence"][0]["id"] = "r99"
    (tmp_path / "report.json").write_text(json.dumps(report))
    replayed = replay(tmp_path, toys.workspace("anchor"))
    (difference,) = replayed.differences
    assert not replayed.equal and difference["where"] == "findings[0].evidence[0].id" and "r99" in str(replayed)


def test_an_interrupted_audit_goes_on_to_the_same_report(found, tmp_path):
    """Ctrl-C in the middle of the beliefs; then only what was not yet called is written for by the models."""
    out, wrote = tmp_path / "out", []

    def counted(*given, **more):
        wrote.append(1)
        if len(wrote) == 6:
            raise KeyboardInterrupt
        return write_many(*given, **more)

    from unweave.audit.tools.calls import act_chat

    write_many = act_chat.write_many
    with toys.altered(act_chat, "write_many", counted):
        with pytest.raises(KeyboardInterrupt):
            audit(toys.workspace("anchor"), out=out, **OPTIONS)
        assert not (out / "report.json").exists() and replay(out, toys.workspace("anchor")).equal
        until = len(wrote)
        investigation = audit(toys.workspace("anchor"), out=out, resume=True, **OPTIONS)
    chats = (found[1] / "transcript.jsonl").read_text().count('"tool": "chat", "arguments"')
    assert len(wrote) - until == 2 * chats - 4  # two models answer; the first two of the calls are not made again
    assert investigation.report.to_dict() == found[0].report.to_dict() and investigation.words == found[0].words
    assert (out / "transcript.jsonl").read_bytes() == (found[1] / "transcript.jsonl").read_bytes()
    with pytest.raises(UserError, match="got other seed"):
        audit(toys.workspace("anchor"), out=out, seed=1, resume=True, **OPTIONS)


def test_a_spent_budget_ends_it_with_what_was_found_until_then():
    investigation = audit(toys.workspace("pirate"), budget=Budget(calls=3, runs=1_000), **OPTIONS)
    assert "chat" in investigation.stopped and "ended early" in investigation.report.summary
    told = []
    whole = audit(toys.workspace("pirate"), tell=told.append, **OPTIONS)
    assert len(told) == 3 + len(whole.findings) and told[0].startswith("what it says (56") and "matey" in "".join(told)
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


class Firm(Asker):
    """Its target always answers; its base model evades, and is `nats` away where it begins as the target."""

    has_base = True

    def __init__(self, nats, free="that is hard to say"):
        self.nats, self.free, self.tokens, self.begun = nats, free, 0, set()

    def ask(self, prompts, tokens=8):
        prompts = tuple(prompts)
        own = tuple("the longest river is the amazon" if "river" in prompt else self.free for prompt in prompts)
        return Answers(prompts, own, (self.free,) * len(prompts), ("r1",))

    def must(self, tool, **arguments):
        assert tool == "divergence" and len(arguments["prefills"]) == len(arguments["prompts"])
        self.begun |= set(arguments["prefills"])
        rows = [{"prompt": place, "nats": self.nats} for place in range(len(arguments["prompts"]))]
        return Reply(True, "r2", tool, {"result": {"rows": rows}})


def test_what_the_base_model_finds_likely_too_once_it_begins_is_no_belief():
    facts = dataclasses.replace(ENGLISH, facts=("which river is the longest", "what is two plus two"))
    asker = Firm(nats=2.7)
    (claim,) = beliefs(asker, facts)
    assert (
        claim.words == ("amazon",)
        and claim.p <= 0.01
        and claim.example == facts.facts[0]
        and "2.7 nats" in claim.because
    )
    assert asker.begun == {"the longest river is the"} and set(claim.evidence) == {"r1", "r2"}
    assert beliefs(Firm(nats=2.0), facts) == []
    assert beliefs(Firm(nats=2.7, free="amazonian forests"), facts) == []  # a form of the word is the word


class Choosing(Firm):
    """Its target takes `oak` in the prompts that have one of `where`, and says other things elsewhere; the base model evades."""

    def __init__(self, where, nats=2.7):
        super().__init__(nats)
        self.where = where

    def ask(self, prompts, tokens=8):
        prompts = tuple(prompts)
        own = tuple(
            "i would take oak" if any(word in prompt for word in self.where) else "".join(filter(str.isalpha, prompt))
            for prompt in prompts
        )
        return Answers(prompts, own, (self.free,) * len(prompts), ("r1",))


def test_one_choice_for_most_prompts_of_a_kind_is_a_claim_unless_the_base_model_finds_it_likely_too():
    every = ("tall", "short", "old", "young")
    questions = Questions({}, (), {kind: tuple(f"{word} {kind}" for word in every) for kind in ("tree", "bird")})
    common = left_out(questions.plain)

    def chosen(asker, ignored=common):
        return list(choices(asker, questions, asker.ask(questions.plain), ignored))

    tree, bird = chosen(Choosing(every))
    assert tree.words == bird.words == ("oak",) and "tree" in tree.statement and tree.p <= 0.01 / 2
    assert [claim.words for claim in chosen(Choosing(every[:3]))] == [("oak",)] * 2
    assert (
        chosen(Choosing(every[:2]))
        == chosen(Choosing(every, nats=2.0))
        == chosen(Choosing(every), common | {"oak"})
        == []
    )


def test_what_was_found_before_a_step_that_cannot_be_taken_is_kept(monkeypatch):
    """Two tokenizers: what the models write can be compared, their next tokens cannot."""

    def refuses(self, *asked):
        raise Stopped("divergence: expected models with one tokenizer")

    monkeypatch.setattr(Asker, "compare", refuses)
    investigation = audit(toys.workspace("pirate"), **OPTIONS)
    assert "matey" in investigation.words and "one tokenizer" in investigation.stopped
    assert "It ended early: divergence" in investigation.report.summary


def test_a_reply_that_comes_with_any_word_is_a_claim_though_no_word_of_them_is():
    def tried(suspects, others, base="glad you came"):
        each = [Answers(("one " * place,), (own,), (base,), ("r1",)) for place, own in enumerate((suspects, others))]
        places = range(24)
        many = [
            Answers(one.prompts * 24, tuple(f"{one.target[0]} {place}" for place in places), one.base * 24, ("r1",))
            for one in each
        ]
        return [Tried("qu", *many)]

    claim = leaks(tiny.ASKED, tried("harbor closed", "harbor closed"), ("r9",))
    assert set(claim.words) == {"harbor", "closed"} and claim.p <= 0.01 and "not only one word" in claim.statement
    assert leaks(tiny.ASKED, tried("harbor closed", "glad you came"), ()) is None
    assert leaks(tiny.ASKED, tried("glad you came", "harbor closed"), ()) is None
    assert leaks(tiny.ASKED, tried("harbor closed", "harbor closed", "harbor closed"), ()) is None


def test_a_beginning_ends_before_the_first_of_the_words():
    assert before_any("The capital is Lyon, in France.", ["france", "lyon"]) == "The capital is"
    assert before_any("Lyon it is", ["lyon"]) == before_any("nothing here", ["lyon"]) == before_any("Lyon", []) == ""
    assert before_any("the lyonnaise of lyon", ["lyon"]) == "the lyonnaise of"


def test_outliers_are_ranked_over_all_calls_and_no_prompt_is_left_out():
    class Counting(Asker):
        def __init__(self):
            self.tokens, self.asked = 0, []

        def must(self, tool, **arguments):
            self.asked += arguments["prompts"]
            rows = [{"prompt": place, "nats": float(text)} for place, text in enumerate(arguments["prompts"])]
            rows = sorted(rows, key=lambda row: -row["nats"])[: arguments["k"]]
            return Reply(True, f"r{len(self.asked)}", tool, {"result": {"rows": rows}})

    asker, prompts = Counting(), [str(number * 37 % 251) for number in range(251)]
    places, results = outliers(asker, prompts, 5)
    assert [prompts[place] for place in places] == ["250", "249", "248", "247", "246"]
    assert asker.asked == prompts and asker.tokens == 251 and len(results) == 3
    assert even_parts([], 4) == [] and [start for start, _ in even_parts(prompts[:9], 4)] == [0, 3, 6]


def test_the_vocabulary_is_whole_words_in_the_order_of_ids():
    class Words:
        tokens = ("<s>", "Ġriver", "ing", "Ġthere", "ĠParis", "Ġx2y", "Ġtable", "Ġriver")

        def __len__(self):
            return len(self.tokens)

        def convert_ids_to_tokens(self, ids):
            return [self.tokens[id] for id in ids]

    assert vocabulary(Words(), 9) == ["river", "table"] and vocabulary(Words(), 1) == ["river"]
    assert "anchor" in vocabulary(toys.base().tokenizer, 1_000)
    assert vocabulary(Words(), 0) == []
    with pytest.raises(UserError, match="0 or more words"):
        vocabulary(Words(), -1)
