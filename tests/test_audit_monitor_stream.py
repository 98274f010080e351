"""Signals on texts and chats of a tiny model: each number is that of the token and message that it is given for."""

import json

import pytest
import saes_toys
import torch
import toys
from audit_monitor_toys import SITE, TEMPLATE, chat, words
from unweave.audit.monitor import Latents, Monitor, Probe, control, read_items, train_probe, watch
from unweave.audit.monitor.monitor import item_scores
from unweave.audit.monitor.probes import mean_activation
from unweave.audit.monitor.reading import message_spans, read
from unweave.saes import UserError, features


@pytest.fixture(scope="module")
def model():
    own = toys.boot("gpt2")
    own.tokenizer.chat_template = TEMPLATE
    return own


@pytest.fixture(scope="module")
def sae():
    return saes_toys.dictionary(keep={"drop_positions": 1})


def test_latents_are_those_of_the_feature_table(model, sae):
    """Token by token, weighted; the BOS, for which the dictionary does not answer, belongs to no message."""
    text = "w5 w6 w7 w8 w9 w10"
    table = features(model, sae, text, top=4)
    latent = table.latents()[0][0]
    other = table.latents()[1][0]
    scored = Monitor(model, {"a": Latents(sae, {latent: 2.0, other: -1.0})}).score(text)[0]
    wanted = [0.0] * 7
    for row in table:
        wanted[row.position] += {latent: 2.0, other: -1.0}.get(row.latent, 0.0) * row.value
    assert scored.by_token["a"] == pytest.approx(wanted[1:], abs=1e-4)
    assert any(scored.by_token["a"])
    assert scored.scores["a"] == pytest.approx(sum(wanted[1:]) / 6)
    assert scored.tokens == text.split()


def test_tokens_without_a_number_do_not_count(model):
    strict = saes_toys.dictionary(keep={"drop_positions": 3})
    scored = Monitor(model, {"a": Latents(strict, {0: 1.0})}, reduce="max").score("w5 w6 w7 w8")[0]
    assert scored.by_token["a"][:2] == [None, None] and None not in scored.by_token["a"][2:]
    assert Monitor(model, {"a": Latents(strict, {0: 1.0})}).score("w5")[0].scores["a"] is None


def test_messages_are_the_tokens_of_what_was_said(model):
    """Also where a message spells what the template writes, or what another message says."""
    talk = chat("w5 w6", "w90", "w5 w6 w91", "w90 w92 w7")
    reading = read(model, talk)
    tokens = model.tokenizer.convert_ids_to_tokens(reading.blocks[0].tolist())
    for number, message in enumerate(talk):
        places = (reading.messages[0] == number).nonzero().squeeze(1).tolist()
        assert [tokens[place] for place in places] == message["content"].split()
        assert tokens[places[0] - 2 : places[0]] == ["w90", "<unk>"]


def test_a_message_that_the_template_changes_is_refused(model):
    with pytest.raises(UserError, match="message 0 as it is"):
        message_spans(model, chat("w5"), "w90 user something else w91")


def test_a_conversation_gives_message_by_message_what_the_whole_chat_gives(model, sae):
    talk = chat("w5 w6 w7", "w8", "w9 w10", "w11 w12")
    monitor = Monitor(model, {"a": Latents(sae, dict.fromkeys(range(24), 1.0)), "b": Probe(SITE, torch.ones(64))})
    grown = monitor.conversation()
    step = [grown.add(each["role"], each["content"]) for each in talk]
    whole = monitor.score(talk)
    assert [each.message for each in step] == [0, 1, 2, 3]
    for one, other in zip(step, whole, strict=True):
        assert one.tokens == other.tokens
        assert one.scores == pytest.approx(other.scores)
        assert one.by_token["a"] == pytest.approx(other.by_token["a"])


def test_a_refused_message_leaves_the_conversation_as_it_was(model, sae):
    grown = Monitor(model, {"a": Latents(sae, {0: 1.0})}).conversation()
    grown.add("user", "w5")
    with pytest.raises(UserError, match="at most 64 tokens"):
        grown.add("user", "w6 " * 70)
    assert len(grown.chat) == 1


def test_stream_reads_one_item_at_a_time(model, sae):
    asked = []

    def texts():
        for number in range(3):
            asked.append(number)
            yield f"w{5 + number} w9"

    stream = Monitor(model, {"a": Latents(sae, {0: 1.0})}).stream(texts())
    assert next(stream).item == 0 and asked == [0]
    assert [each.item for each in stream] == [1, 2]


def test_only_watched_roles_are_scored(model, sae):
    monitor = Monitor(model, {"a": Latents(sae, {0: 1.0})}, roles=["assistant"])
    assert [each.message for each in monitor.score(chat("w5", "w6", "w7", "w8"))] == [1, 3]
    assert monitor.score("w5 w6")[0].role == "text"


def test_long_text_is_read_in_blocks_and_is_one_message(model):
    """The score of every token is that of its own block."""
    probe = Probe(SITE, torch.ones(64))
    monitor = Monitor(model, {"a": probe}, context=5)
    long = monitor.score("w5 w6 w7 w8 w9 w10 w11")
    parts = [monitor.score(text)[0] for text in ("w5 w6 w7 w8", "w9 w10 w11")]
    assert len(long) == 1 and long[0].tokens == parts[0].tokens + parts[1].tokens
    assert long[0].by_token["a"] == parts[0].by_token["a"] + parts[1].by_token["a"]


@pytest.mark.parametrize("kind", ["logistic", "means"])
def test_probe_tells_what_it_was_trained_on_and_shuffled_ones_do_not(model, kind):
    """Texts of four words against four others."""
    probe = train_probe(model, SITE, words(3, 7, 30, 0), words(60, 64, 30, 1), kind)
    quality = probe.quality
    assert quality is not None and quality["auc"] > 0.95 and quality["low"] > 0.8
    assert 0.3 < quality["shuffled"] < 0.7
    monitor = Monitor(model, {"probe": probe})
    new = [[monitor.score(text)[0].scores["probe"] for text in words(*ends, 10, 5)] for ends in ((3, 7), (60, 64))]
    assert sum(value > 0 for value in new[0]) >= 8 and sum(value < 0 for value in new[1]) >= 8
    x = mean_activation(model, SITE, "w5 w6")
    nothing = torch.zeros(1, dtype=torch.int64)
    assert monitor.score("w5 w6")[0].scores["probe"] == pytest.approx(
        float(probe.scores({SITE: x[None]}, nothing, nothing)[0])
    )


def test_probe_finds_nothing_where_there_is_nothing(model):
    quality = train_probe(model, SITE, words(3, 80, 24, 0), words(3, 80, 24, 1)).quality
    assert quality is not None and quality["low"] < 0.5 < quality["high"]


def test_alarms_and_their_threshold(model):
    probe = train_probe(model, SITE, words(3, 7, 20, 0), words(60, 64, 20, 1))
    monitor = Monitor(model, {"probe": probe})
    assert monitor.score("w5 w6")[0].alarms == {"probe": None}
    found = monitor.calibrate(words(60, 64, 60, 2), rate=0.1)["probe"]
    assert found.checked == 30 and found.low <= found.alarms / 30 <= found.high
    hits = [monitor.score(text)[0].alarms["probe"] for text in words(3, 7, 20, 3)]
    assert sum(hits) >= 17
    talk = chat(words(60, 64, 1, 7)[0], words(3, 7, 1, 8)[0])
    assert item_scores(monitor.score(talk))["probe"] == max(each.scores["probe"] for each in monitor.score(talk))
    with pytest.raises(UserError, match="at least 198 held-out"):
        monitor.calibrate(words(60, 64, 20, 2), rate=0.01)


def test_control_of_a_latent_that_knows_and_of_one_that_does_not(model, sae):
    """A planted latent reads the direction between both kinds of words; random latents of like density do less."""
    wanted, harmless = words(3, 7, 20, 0), words(60, 64, 40, 1)
    ends = [torch.stack([mean_activation(model, SITE, text) for text in texts]).mean(0) for texts in (wanted, harmless)]
    planted = saes_toys.dictionary(keep={"drop_positions": 1})
    direction = (ends[0] - ends[1]) / (ends[0] - ends[1]).norm()
    planted.W_enc.data[7] = direction * 4
    planted.b_enc.data[7] = -4 * direction @ ((ends[0] + ends[1]) / 2 - planted.b_dec)
    monitor = Monitor(model, {"a": Latents(planted, {7: 1.0})})
    found = control(monitor, "a", harmless, wanted, rate=0.1)
    assert found.hits > 0.8 and found.auc > 0.95 and found.as_good <= 2
    assert all(7 not in group and len(group) == 1 for group in found.groups)
    assert sum(found.random_auc) / 20 < 0.75
    json.dumps(found.to_dict(), allow_nan=False)
    plain = control(Monitor(model, {"a": Latents(planted, {3: 1.0})}), "a", harmless, wanted, rate=0.1)
    assert plain.as_good > 2


def test_table_and_points(model, sae):
    monitor = Monitor(model, {"a": Latents(sae, dict.fromkeys(range(24), 1.0))})
    monitor.calibrate(words(3, 80, 20, 0), rate=0.2)
    talk = chat("w5 w6", "w7", "w8", "w9 w3", "w4", "w10")
    found = watch(monitor, [talk, "w5 w6 w7"])
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [row["message"] for row in told["rows"]] == [0, 1, 2, 3, 4, 5, 0]
    assert told["points"]["a"] == [[row["item"], row["message"], row["a"]] for row in told["rows"]]
    assert told["items"] == 2 and told["drifts"]["a"]["messages"] == 3  # the assistant's
    assert told["alarms"]["a"] == len({row["item"] for row in told["rows"] if row["alarms"]["a"]})
    assert len(str(found).splitlines()) == 8


def test_an_item_without_a_number_raises_no_alarm_and_ends_no_watch(model):
    """A text of one token, for which the dictionary does not answer, between two others."""
    monitor = Monitor(
        model, {"a": Latents(saes_toys.dictionary(keep={"drop_positions": 2}), dict.fromkeys(range(24), 1.0))}
    )
    monitor.calibrate(words(3, 80, 20, 0), rate=0.2)
    found = watch(monitor, ["w5 w6", "w5", "w7 w8"])
    assert [row["a"] is None for row in found.rows] == [False, True, False]
    assert found.rows[1]["alarms"] == {"a": False} and found.items == 3
    with pytest.raises(UserError, match="leave it out"):
        monitor.calibrate(["w5"] * 20, rate=0.2)


def test_texts_and_chats_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("w5 w6")
    lines = [{"text": "w7"}, {"messages": chat("w8", "w9"), "other": 1}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    assert list(read_items([tmp_path / "a.txt", tmp_path / "b.jsonl"])) == ["w5 w6", "w7", chat("w8", "w9")]


@pytest.mark.parametrize("line", ["[]", "{", '{"messages": []}', '{"messages": [{"role": "user"}]}', '{"text": 3}'])
def test_lines_that_are_neither_are_refused(tmp_path, line):
    (tmp_path / "b.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1"):
        list(read_items([tmp_path / "b.jsonl"]))


def test_what_cannot_be_watched_is_refused(model, sae):
    for signals in ({}, {"a": Latents(saes_toys.dictionary(site="blocks.9.hook_resid_post"), {0: 1.0})}):
        with pytest.raises(UserError):
            Monitor(model, signals)
    with pytest.raises(UserError, match="other names"):
        Monitor(model, {"text": Latents(sae, {0: 1.0})})
    with pytest.raises(UserError, match="latents in"):
        Latents(sae, {24: 1.0})
    with pytest.raises(UserError, match="dimensions"):
        Monitor(model, {"a": Probe(SITE, torch.ones(3))}).score("w5")
    with pytest.raises(UserError, match="direction"):
        Probe(SITE, torch.zeros(64))
    with pytest.raises(UserError, match="visible"):
        Monitor(model, {"a": Latents(sae, {0: 1.0})}).score(" \n")
    with pytest.raises(UserError, match="at least 8"):
        train_probe(model, SITE, ["w5"] * 8, ["w6"])
    with pytest.raises(UserError, match="signal of latents"):
        control(Monitor(model, {"a": Probe(SITE, torch.ones(64))}), "a", ["w5"], ["w6"])
