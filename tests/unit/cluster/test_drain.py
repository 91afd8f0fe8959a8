"""A cloud's notice is seen; what keeps it from being seen is said. The metadata service is on loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fedray.cluster import drain
from fedray.errors import HostError


class Metadata(BaseHTTPRequestHandler):
    """Answers as the class attributes say, and keeps what it was asked."""

    answers: dict[str, tuple[int, str]]
    asked: list[tuple[str, str, dict[str, str]]]

    def _answer(self):
        headers = {name.lower(): text for name, text in self.headers.items()}
        self.asked.append((self.command, self.path, headers))
        code, text = self.answers.get(self.path, (404, ""))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_PUT = _answer

    def log_message(self, *words):
        """Say nothing."""


@pytest.fixture
def service():
    """A metadata service on loopback: its address, and the class to set answers on."""
    kind = type("Kind", (Metadata,), {"answers": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    thread.join()
    server.server_close()


TOKEN = {"/latest/api/token": (200, "abc")}
NOTICE = {"/latest/meta-data/spot/instance-action": (200, '{"action": "terminate"}')}
GOOGLE = "/computeMetadata/v1/instance/preempted"


def test_no_notice_on_aws_is_a_missing_path(service):
    base, kind = service
    kind.answers = TOKEN
    assert drain.is_noticed(drain.CLOUDS["aws"], base) is False


def test_notice_on_aws_is_read_with_a_session_token(service):
    base, kind = service
    kind.answers = TOKEN | NOTICE
    assert drain.is_noticed(drain.CLOUDS["aws"], base) is True
    (token, _, asked_for), (method, _, shown) = kind.asked
    assert (token, method) == ("PUT", "GET")
    assert asked_for["x-aws-ec2-metadata-token-ttl-seconds"] == "60"
    assert shown["x-aws-ec2-metadata-token"] == "abc"


@pytest.mark.parametrize(("text", "is_noticed"), [("FALSE", False), ("TRUE", True)])
def test_notice_on_google_is_a_word(service, text, is_noticed):
    base, kind = service
    kind.answers = {GOOGLE: (200, text)}
    assert drain.is_noticed(drain.CLOUDS["gcp"], base) is is_noticed
    assert kind.asked[0][2]["metadata-flavor"] == "Google"


def test_service_that_refuses_is_an_error_with_a_fix(service):
    base, kind = service
    kind.answers = {"/latest/api/token": (403, "")}
    with pytest.raises(HostError, match=r"answers 403: no notice would be seen\. Fix: "):
        drain.is_noticed(drain.CLOUDS["aws"], base)


def test_service_that_does_not_answer_has_said_nothing():
    assert drain.is_noticed(drain.CLOUDS["aws"], "http://127.0.0.1:9") is False


def test_watch_drains_within_the_notice_once_it_comes(service, monkeypatch):
    base, kind = service
    asked = []

    def takes_it_the_second_time(address, node_ip, seconds):
        asked.append((address, node_ip))
        assert 100.0 < seconds <= 110.0
        if len(asked) == 1:
            raise HostError("the head did not answer")
        return "node"

    monkeypatch.setattr(drain, "drain", takes_it_the_second_time)
    monkeypatch.setattr(drain.time, "sleep", lambda _: kind.answers.update(NOTICE))
    kind.answers = dict(TOKEN)
    assert drain.watch("aws", "10.0.8.1:6379", "10.0.8.7", base) == "node"
    assert asked == [("10.0.8.1:6379", "10.0.8.7")] * 2


def test_drain_without_time_is_refused(capsys):
    words = ["now", "--address", "10.0.8.1:6379", "--node-ip", "10.0.8.7", "--seconds", "0"]
    assert drain.main(words) == 1
    assert "a drain needs some time. Fix: --seconds 100" in capsys.readouterr().err
