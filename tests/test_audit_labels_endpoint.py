"""The HTTP backend against a fake endpoint on this machine: retries, limits, cache, and a key that is nowhere."""

import contextlib
import json
import socket
import threading
import time

import pytest
from fake_endpoint import answering
from unweave.audit.labels import Endpoint
from unweave.saes import UserError

KEY = "sk-very-secret-key"
CHAT = [{"role": "user", "content": "hello"}]


class Fake:
    """An endpoint whose answers are a list of (status, headers, body); what it was sent is in `seen`."""

    def __init__(self, *answers, delay=0.0):
        self.answers, self.delay, self.seen, self.now, self.most = list(answers), delay, [], 0, 0
        self.lock = threading.Lock()

    def next(self, path, headers, body):
        with self.lock:
            self.seen.append((path, headers, body))
            self.now += 1
            self.most = max(self.most, self.now)
            answer = self.answers.pop(0) if self.answers else text_answer(f"echo {body['messages'][0]['content']}")
        time.sleep(self.delay)
        with self.lock:
            self.now -= 1
        return answer


def text_answer(text, logprobs=None):
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "logprobs": logprobs}]})


def serving(fake):
    return answering(fake.next)


def test_asks_as_openai_does_and_reads_the_first_choice(monkeypatch):
    monkeypatch.setenv("UNWEAVE_API_KEY", KEY)
    fake = Fake(text_answer("a label"))
    with serving(fake) as url:
        assert Endpoint(url, "some-model", seed=7).complete([CHAT], 60) == ["a label"]
    path, headers, body = fake.seen[0]
    assert path == "/v1/chat/completions"
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == f"Bearer {KEY}"
    assert body == {"model": "some-model", "temperature": 0, "seed": 7, "messages": CHAT, "max_tokens": 60}


def test_errors_that_pass_are_tried_again_with_growing_waits():
    waits = []
    fake = Fake((500, {}, ""), (503, {}, ""), (429, {"retry-after": "7"}, ""), (429, {"retry-after": "9999"}, ""))
    with serving(fake) as url:
        assert Endpoint(url, "m", pause=waits.append).complete([CHAT], 5) == ["echo hello"]
    assert waits == [1.0, 2.0, 7.0, 60.0]


def test_an_error_that_stays_ends_it_at_once_and_others_after_the_last_try():
    with serving(Fake((401, {}, "no such key"))) as url, pytest.raises(UserError, match=r"401.*after 1 tries"):
        Endpoint(url, "m", pause=lambda wait: None).complete([CHAT], 5)
    waits = []
    with serving(Fake(*[(500, {}, "")] * 9)) as url, pytest.raises(UserError, match=r"500.*after 3 tries"):
        Endpoint(url, "m", tries=3, pause=waits.append).complete([CHAT], 5)
    assert len(waits) == 2


def test_a_slow_or_absent_server_is_a_plain_error():
    with serving(Fake(delay=0.5)) as url, pytest.raises(UserError, match="ReadTimeout"):
        Endpoint(url, "m", tries=1, timeout_s=0.05).complete([CHAT], 5)
    with pytest.raises(UserError, match="ConnectError"):
        Endpoint("http://127.0.0.1:1/v1", "m", tries=1).complete([CHAT], 5)


def test_no_more_requests_at_once_than_allowed():
    fake = Fake(delay=0.03)
    chats = [[{"role": "user", "content": str(number)}] for number in range(12)]
    with serving(fake) as url:
        found = Endpoint(url, "m", at_once=3).complete(chats, 5)
    assert found == [f"echo {number}" for number in range(12)]
    assert fake.most == 3


def test_same_question_is_asked_once(tmp_path):
    fake = Fake()
    with serving(fake) as url:
        for _ in range(2):
            assert Endpoint(url, "m", cache=tmp_path).complete([CHAT], 5) == ["echo hello"]
        assert len(fake.seen) == 1
        Endpoint(url, "m", cache=tmp_path).complete([CHAT], 6)
        Endpoint(url, "m", cache=tmp_path, seed=1).complete([CHAT], 5)
        Endpoint(url, "other", cache=tmp_path).complete([CHAT], 5)
    assert len(fake.seen) == 4


def test_damaged_cache_is_asked_again(tmp_path):
    fake = Fake()
    with serving(fake) as url:
        Endpoint(url, "m", cache=tmp_path).complete([CHAT], 5)
        file = next(tmp_path.rglob("*.json"))
        file.write_text(file.read_text()[:40])
        assert Endpoint(url, "m", cache=tmp_path).complete([CHAT], 5) == ["echo hello"]
    assert len(fake.seen) == 2


def test_key_is_in_no_file_and_no_error(tmp_path, monkeypatch):
    """Not even if the server sends it back, in an answer or in an error."""
    monkeypatch.setenv("OWN_KEY", KEY)
    fake = Fake(text_answer(f"your key is {KEY}"), (403, {}, f"{KEY} is not allowed"), (200, {}, f"nonsense {KEY}"))
    with serving(fake) as url:
        endpoint = Endpoint(url, "m", cache=tmp_path, key_variable="OWN_KEY")
        said = endpoint.complete([CHAT], 5)
        errors = []
        for tokens in (6, 7):
            with pytest.raises(UserError) as error:
                endpoint.complete([CHAT], tokens)
            errors.append(str(error.value))
    assert KEY in str(fake.seen)
    told = [*said, *errors, repr(endpoint), *(file.read_text() for file in tmp_path.rglob("*.json"))]
    assert len(told) == 5 and not any(KEY in each for each in told)


def test_redirects_are_not_followed(monkeypatch):
    monkeypatch.setenv("UNWEAVE_API_KEY", KEY)
    other = Fake()
    with serving(other) as elsewhere, serving(Fake((307, {"location": elsewhere}, ""))) as url:
        with pytest.raises(UserError, match="307"):
            Endpoint(url, "m", tries=1).complete([CHAT], 5)
    assert not other.seen


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"choices": []}', '{"choices": [1]}', '{"choices": [{"message": {"content": 1}}]}']
)
def test_what_is_no_completion_is_refused(body):
    with serving(Fake((200, {}, body))) as url, pytest.raises(UserError, match="OpenAI-compatible"):
        Endpoint(url, "m").complete([CHAT], 5)


def test_a_model_that_spent_its_tokens_on_thinking_wrote_nothing():
    with serving(Fake((200, {}, '{"choices": [{"message": {"content": null}}]}'))) as url:
        assert Endpoint(url, "m").complete([CHAT], 5) == [""]


def test_halves_of_surrogate_pairs_are_neither_sent_nor_kept(tmp_path):
    fake = Fake((200, {}, '{"choices": [{"message": {"content": "half \\ud83d"}}]}'))
    with serving(fake) as url:
        endpoint = Endpoint(url, "m", cache=tmp_path)
        asked = [{"role": "user", "content": "half \ud83d"}]
        assert [endpoint.complete([asked], 5), endpoint.complete([asked], 5)] == [["half \ufffd"]] * 2
    assert [body["messages"][0]["content"] for _, _, body in fake.seen] == ["half \ufffd"]


@pytest.mark.parametrize("asked, waited", [("nan", 1.0), ("-inf", 0.0), ("inf", 60.0), ("Tue, 1 Jan 2030", 1.0)])
def test_a_wait_that_is_none_is_not_obeyed(asked, waited):
    waits = []
    with serving(Fake((429, {"retry-after": asked}, ""))) as url:
        Endpoint(url, "m", pause=waits.append).complete([CHAT], 5)
    assert waits == [waited]


def test_what_a_server_says_cannot_drive_the_terminal():
    with serving(Fake((400, {}, "\x1b[31mred\x07 \u202e"))) as url, pytest.raises(UserError) as error:
        Endpoint(url, "m").complete([CHAT], 5)
    assert "[31mred" in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("key", ["кл", "sk-secret\nx: y"])
def test_a_key_that_no_header_can_hold_is_a_plain_error_without_it(key, monkeypatch):
    monkeypatch.setenv("UNWEAVE_API_KEY", key)
    fake = Fake()
    with serving(fake) as url, pytest.raises(UserError, match="expected a key of plain characters") as error:
        Endpoint(url, "m", pause=pytest.fail).complete([CHAT], 5)
    assert key not in str(error.value) and not fake.seen


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_time_that_no_request_can_take_is_refused(seconds):
    with pytest.raises(UserError, match="some seconds"):
        Endpoint("http://127.0.0.1:9/v1", "m", timeout_s=seconds)


def endless(pause):
    """The address of a server whose one answer never ends, a part after each `pause`."""

    def serve(listening):
        with contextlib.suppress(OSError):
            taken, _ = listening.accept()
            with taken:
                taken.recv(2**16)
                taken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")
                while True:
                    taken.sendall(b" " * 2**16)
                    time.sleep(pause)

    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listening,), daemon=True).start()
    return listening, f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_an_answer_that_drips_takes_no_longer_than_a_request_may():
    listening, url = endless(0.05)
    start = time.monotonic()
    with listening, pytest.raises(UserError, match="ReadTimeout"):
        Endpoint(url, "m", tries=1, timeout_s=0.3).complete([CHAT], 5)
    assert time.monotonic() - start < 3


def test_no_more_of_an_answer_is_read_than_an_answer_can_be():
    listening, url = endless(0.0)
    with listening, pytest.raises(UserError, match="OpenAI-compatible"):
        Endpoint(url, "m", tries=1).complete([CHAT], 5)


def test_after_a_request_failed_for_good_the_others_are_not_tried_again():
    seen = []

    def answer(path, headers, body):
        seen.append(body["messages"][0]["content"])
        return (401 if seen[-1] == "wrong" else 500), {}, ""

    with answering(answer) as url:
        endpoint = Endpoint(url, "m", at_once=2)
        start = time.monotonic()
        with pytest.raises(UserError, match="401"):
            endpoint.complete([[{"role": "user", "content": "wrong"}], CHAT], 5)
    assert seen.count("hello") <= 1 and time.monotonic() - start < 0.9


def test_probabilities_from_the_likeliest_tokens():
    def likely(*pairs):
        top = [{"token": token, "logprob": value} for token, value in pairs]
        return text_answer("1", {"content": [{"token": "1", "logprob": 0, "top_logprobs": top}]})

    fake = Fake(likely(("1", -0.1), (" 1", -3.0), ("0", -2.5)), likely(("yes", -0.1)), text_answer("1"))
    with serving(fake) as url:
        endpoint = Endpoint(url, "m", logprobs=True, at_once=1)
        first, second = endpoint.probabilities([CHAT, CHAT])
        assert first == pytest.approx((0.904837 + 0.049787) / (0.904837 + 0.049787 + 0.082085), abs=1e-5)
        assert second is None
        with pytest.raises(UserError, match="leave logprobs out"):
            endpoint.probabilities([CHAT])


WRONG = [
    "localhost:8000",
    "ftp://host/v1",
    "http://me:secret@host/v1",
    "http:///v1",
    "",
    "http://[::1",
    "http://a..b/v1",
    "http://a\n/",
]


@pytest.mark.parametrize("url", [*WRONG, f"http://{'secret' * 20}.com"])
def test_addresses_that_are_none_are_refused_without_showing_them(url):
    with pytest.raises(UserError, match="expected an address") as error:
        Endpoint(url, "m")
    assert "secret" not in str(error.value)
