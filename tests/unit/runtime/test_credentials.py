"""What a process would show a cluster: read as Ray reads it, and every flaw said with its fix."""

import datetime as dt

import pytest

from fedray.cluster import certs
from fedray.runtime.credentials import examine, from_environment
from fedray.runtime.findings import FAIL, NOTE, PASS


@pytest.fixture
def home(tmp_path):
    """Return a folder with an authority, a node's certificate and a token, as on a node."""
    certs.make_authority(tmp_path)
    certs.make_node(tmp_path, "h001", ["10.0.0.2"])
    certs.make_token(tmp_path / "token")
    return tmp_path


def environment(home, **other):
    node = home / "nodes" / "h001"
    return {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(node / "node.crt"),
        "RAY_TLS_SERVER_KEY": str(node / "node.key"),
        "RAY_TLS_CA_CERT": str(node / "ca.crt"),
        **other,
    }


def found(settings, status=FAIL, addresses=("10.0.0.2",)):
    return [each for each in examine(from_environment(settings), addresses) if each.status == status]


def test_sound_credentials_pass(home):
    assert found(environment(home)) == []
    assert [each.check for each in found(environment(home), PASS)] == ["token", "tls"]
    assert from_environment(environment(home)).is_complete


def test_token_is_taken_from_where_ray_takes_it(home):
    own = environment(home, RAY_AUTH_TOKEN="abc")
    assert from_environment(own).token == "abc"
    assert from_environment(environment(home)).token == (home / "token").read_text()
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of the home folder\n")
    assert from_environment(environment(home, RAY_AUTH_TOKEN_PATH="")).token == "of the home folder"


@pytest.mark.parametrize(("other", "message"), [
    ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is not 'token'"),
    ({"RAY_AUTH_TOKEN_PATH": ""}, "there is no token"),
    ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "the token's file cannot be read (FileNotFoundError)"),
    ({"RAY_USE_TLS": "0"}, "RAY_USE_TLS is not set"),
    ({"RAY_TLS_SERVER_KEY": ""}, "RAY_TLS_SERVER_KEY: not set, or no such file"),
])  # fmt: skip
def test_what_is_not_set_is_named_with_its_fix(home, other, message):
    (finding,) = found(environment(home, **other))
    assert finding.message.startswith(message) and "fedray cluster certs" in finding.fix


def test_token_that_others_may_read_fails(home):
    (home / "token").chmod(0o644)
    (finding,) = found(environment(home))
    assert "mode 0644" in finding.message and finding.fix == 'chmod 600 "$RAY_AUTH_TOKEN_PATH"'


def test_key_that_others_may_read_fails(home):
    (home / "nodes" / "h001" / "node.key").chmod(0o640)
    (finding,) = found(environment(home))
    assert finding.check == "tls" and "mode 0640" in finding.message


def test_certificate_that_does_not_name_the_address_fails(home):
    (finding,) = found(environment(home), addresses=["10.0.0.9"])
    assert "does not name 10.0.0.9" in finding.message and "--renew --ip 10.0.0.9" in finding.fix


def test_certificate_of_another_authority_fails(home, tmp_path):
    certs.make_authority(tmp_path / "theirs")
    (finding,) = found(environment(home, RAY_TLS_CA_CERT=str(tmp_path / "theirs" / "ca.crt")))
    assert finding.message.startswith("the certificate here is signed by CN=fedray cluster")


def test_key_of_another_certificate_fails(home):
    certs.make_node(home, "h002", ["10.0.0.3"])
    (finding,) = found(environment(home, RAY_TLS_SERVER_KEY=str(home / "nodes" / "h002" / "node.key")))
    assert finding.message == "RAY_TLS_SERVER_KEY is not the key of RAY_TLS_SERVER_CERT"


def test_certificate_that_ends_soon_is_a_note(home):
    certs.make_node(home, "h001", days=9, renew=True)
    (finding,) = found(environment(home), NOTE)
    assert "ends in 8 days" in finding.message and "--renew" in finding.fix
    assert found(environment(home)) == []


@pytest.mark.parametrize(("starts", "ends", "message"), [
    (dt.timedelta(days=-9), dt.timedelta(days=-1), "the certificate here ended on"),
    (dt.timedelta(hours=5), dt.timedelta(days=9), "the certificate here starts on"),
])  # fmt: skip
def test_certificate_outside_its_time_fails(home, monkeypatch, starts, ends, message):
    now = dt.datetime.now(dt.UTC)

    def validity(builder, *_):
        return builder.not_valid_before(now + starts).not_valid_after(now + ends)

    monkeypatch.setattr(certs, "_validity", validity)
    certs.make_node(home, "h001", renew=True)
    (finding,) = found(environment(home))
    assert finding.message.startswith(message)


def test_nothing_that_is_said_holds_the_token(home):
    (home / "token").chmod(0o644)
    token = (home / "token").read_text()
    said = [str(each) for each in examine(from_environment(environment(home)), ["10.0.0.9"])]
    assert said and token not in "".join(said)
