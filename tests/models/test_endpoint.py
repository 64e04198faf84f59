"""A judge behind a server: retries, rate limits, refusals, malformed replies, resuming, and where the key goes."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lit_safe.rollouts.text_scores import Text, score_texts
from models.scorers import http_json
from models.scorers.endpoint import EndpointJudge
from models.scorers.formats.question import Question

KEY = "sk-very-secret"


class Server:
    """A local stub. ``plan`` has what it answers first: a status, headers and a body; then it judges by a word."""

    def __init__(self):
        self.asked, self.plan, self.lock = [], [], threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    stub.asked.append((self.path, self.headers.get("Authorization"), body))
                    step = stub.plan.pop(0) if stub.plan else None
                status, headers, content = step or (200, {}, judged(body))
                sent = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(sent))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def judged(body):
    answer = body["messages"][0]["content"].partition("<answer>\n")[2]
    return says("unsafe" if answer.startswith("Hit") else "safe")


def says(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub = Server()
    yield stub
    stub.close()


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(http_json.time, "sleep", found.append)
    return found


def judge(server, **options):
    return EndpointJudge(server.url, "judge", Question(), **{"requests_at_once": 1, "retries": 2, **options})


def test_each_response_is_one_request_and_the_order_is_kept(server):
    responses = ["Hit him.", "No.", "Hit her.", "A walk."] * 3
    found = judge(server, requests_at_once=4, extra={"seed": 0})(["Who?"] * 12, responses)
    assert found.tolist() == [1.0, 0.0, 1.0, 0.0] * 3
    path, key, body = server.asked[0]
    assert (path, key) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert {name: body[name] for name in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "judge",
        "temperature": 0,
        "max_tokens": 16,
        "seed": 0,
    }
    assert len(server.asked) == 12


def test_a_passing_error_is_tried_again_after_as_long_as_the_server_asks(server, waits):
    server.plan = [(503, {}, "busy"), (429, {"Retry-After": "7"}, "slow down")]
    assert judge(server)(["Who?"], ["Hit him."]).tolist() == [1.0]
    assert waits == [1.0, 7.0]
    server.plan = [(500, {}, ""), (500, {"Retry-After": "Mon, 01 Jan 2035 00:00:00 GMT"}, "")]
    judge(server)(["Who?"], ["No."])
    assert waits[2:] == [1.0, 2.0], "twice as long each time"


def test_an_error_for_good_and_the_end_of_patience_end_the_judge_without_the_key(server, waits, caplog):
    server.plan = [(401, {}, f"Incorrect API key provided: {KEY}")]
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match=r"refuses .* \(status 401") as refused:
        judge(server)(["Who?"], ["No."])
    server.plan = [(429, {}, KEY)] * 3
    with caplog.at_level(logging.DEBUG), pytest.raises(ConnectionError, match="in 3 tries") as late:
        judge(server)(["Who?"], ["No."])
    said = f"{refused.value} {late.value} {caplog.text} {vars(judge(server))} {judge(server).settings()}"
    assert "Incorrect API key provided: ..." in said
    assert KEY not in said


def test_a_redirect_is_not_followed(server):
    server.plan = [(302, {"Location": server.url.replace("/v1", "/elsewhere")}, "")]
    with pytest.raises(ValueError, match="status 302"):
        judge(server)(["Who?"], ["No."])
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_named(server, waits):
    url = server.url
    server.close()
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:\d+/v1/chat/completions did not answer in 2 tries"):
        EndpointJudge(url, "judge", Question(), retries=1)(["Who?"], ["No."])
    server.server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # for the fixture to close
    server.thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.01})
    server.thread.start()


def test_a_malformed_reply_is_no_verdict_and_one_without_the_interface_is_an_error(server):
    server.plan = [(200, {}, says("I would say unsafe.")), (200, {}, says(None))]
    one = judge(server)
    found = one(["Who?"] * 3, ["A", "B", "C"])
    assert found.isnan().tolist() == [True, True, False]
    assert one.malformed == 2
    server.plan = [(200, {}, {"error": "no model"})]
    with pytest.raises(ValueError, match=r"without choices\[0\]\.message\.content: {'error': 'no model'}"):
        judge(server)(["Who?"], ["No."])
    server.plan = [(200, {}, "<html>")]
    with pytest.raises(ValueError, match="answers no JSON, but b'<html>'"):
        judge(server)(["Who?"], ["No."])


def test_a_judge_that_dies_midway_asks_only_what_is_missing(server, waits, tmp_path: Path):
    texts = [Text("Who?", f"Hit {i}." if i % 2 else f"No {i}.", f"row {i}") for i in range(8)]
    options = {"batch": 2, "cache_dir": tmp_path, "device": torch.device("cpu")}
    server.plan = [None] * 5 + [(401, {}, "the money is gone")]
    with pytest.raises(ValueError, match="the money is gone"):
        score_texts(judge(server), texts, **options)
    before = len(server.asked)
    found = score_texts(judge(server), texts, **options)
    assert found[:, 0].tolist() == [0, 1] * 4
    assert len(server.asked) - before == 4, "two batches of two were kept"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    score_texts(judge(server, requests_at_once=3), texts, **options)
    assert len(server.asked) - before == 4


def test_a_missing_key_and_an_unsafe_address_are_refused(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="the environment variable OPENAI_API_KEY has no key"):
        judge(server)(["Who?"], ["No."])
    assert judge(server, key_variable=None)(["Who?"], ["Hit him."]).tolist() == [1.0]
    assert server.asked[-1][1] is None
    with pytest.raises(ValueError, match="would send the key unencrypted"):
        EndpointJudge("http://example.org/v1", "judge", Question())
    EndpointJudge("http://example.org/v1", "judge", Question(), key_variable=None)
    with pytest.raises(ValueError, match="no user name and no password"):
        EndpointJudge("https://me:word@example.org/v1", "judge", Question())
    with pytest.raises(ValueError, match="must begin with http:// or https://"):
        EndpointJudge("example.org/v1", "judge", Question())
    with pytest.raises(ValueError, match="never the key itself") as given:
        EndpointJudge("https://example.org/v1", "judge", Question(), key_variable=KEY)
    assert KEY not in str(given.value)
    with pytest.raises(ValueError, match="requests_at_once must be >= 1"):
        judge(server, requests_at_once=0)


def test_the_digest_names_the_server_the_model_and_the_question(server):
    same = {judge(server).digest(), judge(server, retries=1, timeout=3.0, key_variable=None).digest()}
    assert len(same) == 1
    others = [judge(server, extra={"seed": 1}), EndpointJudge(server.url, "other", Question())]
    assert len({*same, *(one.digest() for one in others)}) == 3
