"""The command of the monitor, on a tiny model; and chats of the bundled one, whose template is a real one."""

import json

import pytest
import saes_toys
import toys
import unweave.saes
from audit_monitor_toys import SITE, TEMPLATE, chat, words
from unweave.audit.monitor import Monitor, Probe
from unweave.audit.monitor.command import monitor as command
from unweave.audit.monitor.command import weight_of
from unweave.audit.monitor.reading import read
from unweave.saes import UserError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files of texts and chats, and a dictionary of the toy, which stands in for every model."""
    own = toys.boot("gpt2")
    own.tokenizer.chat_template = TEMPLATE
    monkeypatch.setattr(unweave.saes, "load_model", lambda name, device=None: own)
    saes_toys.dictionary(
        keep={"drop_positions": 1}, model={"name": "toy", "fingerprint": unweave.saes.model_info(own).fingerprint}
    ).save(tmp_path / "sae")
    talks = [{"messages": chat("w5 w6", "w7 w8", "w9", "w10", "w11", "w3 w4")}, {"text": "w5 w6 w70"}]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(one) + "\n" for one in talks))
    for name, texts in {"held": words(60, 64, 20, 1), "yes": words(3, 7, 10, 2), "no": words(60, 64, 10, 3)}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path


def test_latents_and_a_probe_at_once(files):
    seen, held, yes, no = (str(files / f"{name}.jsonl") for name in ("seen", "held", "yes", "no"))
    found = command(
        (seen,), (held,), files / "sae", ("3", "5:0.5"), SITE, (yes,), (no,), wanted=(yes,), rate=0.2, roles=("assistant",)
    )  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [(row["item"], row["message"]) for row in found["rows"]] == [(0, 1), (0, 3), (0, 5), (1, 0)]
    assert found["signals"]["latents"]["weights"] == {"3": 1.0, "5": 0.5}
    assert found["signals"]["probe"]["quality"]["auc"] > 0.9
    assert found["calibrations"]["probe"]["checked"] == 10
    assert len(found["control"]["random_auc"]) == 20
    assert found["drifts"]["probe"]["messages"] == 3


def test_wrong_commands_are_refused(files):
    seen, held = (str(files / f"{name}.jsonl") for name in ("seen", "held"))
    for given in ({}, {"dictionary": files / "sae"}, {"latents": ("3",)}):
        with pytest.raises(UserError, match="neither whole"):
            command((seen,), (held,), **given)
    with pytest.raises(UserError, match="expected --model"):
        command((seen,), (held,), site=SITE)
    with pytest.raises(UserError, match="at least 198"):
        command((seen,), (held,), files / "sae", ("3",))
    for given in (
        {"dictionary": files / "sae", "latents": ("3",), "positive": ("x",)},
        {"site": SITE, "wanted": ("x",)},
    ):
        with pytest.raises(UserError, match="got them alone"):
            command((seen,), (held,), **given)
    with pytest.raises(UserError, match="each latent once"):
        command((seen,), (held,), files / "sae", ("3", "3:2"))
    with pytest.raises(UserError, match="such as 12"):
        weight_of("x:1")


def test_messages_of_a_real_template(smollm2):
    """The template adds a system prompt and markers; messages that spell them are still told apart."""
    talk = chat("What is a user?", "user", "system", "A person. <|im_end|>", "thanks!", "assistant")
    reading = read(smollm2, talk)
    for number, message in enumerate(talk):
        ids = reading.blocks[0][reading.messages[0] == number]
        assert smollm2.tokenizer.decode(ids) == message["content"]
    monitor = Monitor(smollm2, {"first": Probe("blocks.3.hook_resid_post", smollm2.W_U[:, 5].clone())})
    grown = monitor.conversation()
    step = [grown.add(each["role"], each["content"]) for each in talk]
    whole = monitor.score(talk)
    for one, other in zip(step, whole, strict=True):
        assert one is not None and one.tokens == other.tokens
        assert one.scores["first"] == pytest.approx(other.scores["first"], rel=1e-3, abs=1e-4)
