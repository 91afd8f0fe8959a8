"""Certificates and token: what they say, who may read them, what is refused; real handshakes."""

import argparse
import datetime as dt
import json
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509

from fedray.cluster import certs, commands
from fedray.errors import ConfigError
from fedray.runtime.credentials import is_signed_by, read_certificate


def call(*words):
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers(dest="command"))
    return commands.run(parser.parse_args(["cluster", "certs", *map(str, words)]))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def context(purpose, home):
    made = ssl.SSLContext(purpose)
    made.load_cert_chain(home / "node.crt", home / "node.key")
    made.load_verify_locations(home / "ca.crt")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def shaken(server_home, client_home, host):
    """Let two nodes greet each other over a socket, the client checking the host; return what both found."""
    listener = socket.create_server(("127.0.0.1", 0))
    found = {}

    def serve():
        plain, _ = listener.accept()
        try:
            with context(ssl.PROTOCOL_TLS_SERVER, server_home).wrap_socket(plain, server_side=True) as talk:
                found["client"] = talk.getpeercert()
                talk.sendall(b"x")
        except ssl.SSLError as error:
            found["error"] = error.reason

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        plain = socket.create_connection(listener.getsockname())
        with context(ssl.PROTOCOL_TLS_CLIENT, client_home).wrap_socket(plain, server_hostname=host) as talk:
            found["said"] = talk.recv(1)
    finally:
        thread.join()
        listener.close()
    return found


@pytest.fixture
def folder(tmp_path):
    certs.make_authority(tmp_path / "ours")
    certs.make_node(tmp_path / "ours", "head", ["10.0.0.1"])
    certs.make_node(tmp_path / "ours", "h001", ["10.0.0.2"], ["h001.example"])
    return tmp_path / "ours"


def test_node_certificate_names_its_addresses_and_its_loopback(folder):
    made = read_certificate(folder / "nodes" / "h001" / "node.crt")
    assert made.addresses == ("10.0.0.2", "127.0.0.1") and made.names == ("h001.example", "localhost")
    assert 363 <= made.days_left <= 365


def test_serials_are_large_and_differ(folder):
    serials = [int(each.serial, 16) for _, each in certs.certificates(folder)]
    assert len(set(serials)) == 3 and min(serials) > 2**64


def test_secrets_are_for_their_owner_alone_and_the_rest_can_be_read(folder):
    certs.make_token(folder / "token")
    secret = [folder / "ca.key", folder / "token", *folder.glob("nodes/*/node.key")]
    assert {mode(path) for path in secret} == {0o600} and len(secret) == 4
    assert {mode(path) for path in folder.rglob("*.crt")} == {0o644}


def test_nodes_of_one_authority_greet_each_other(folder):
    found = shaken(folder / "nodes" / "head", folder / "nodes" / "h001", "10.0.0.1")
    assert found["said"] == b"x" and "error" not in found
    assert found["client"]["subject"] == ((("commonName", "h001"),),)


def test_client_refuses_a_node_that_is_called_at_another_address(folder):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"IP address mismatch"):
        shaken(folder / "nodes" / "head", folder / "nodes" / "h001", "10.0.0.9")


def test_node_of_another_authority_is_refused(folder, tmp_path):
    certs.make_authority(tmp_path / "theirs")
    certs.make_node(tmp_path / "theirs", "h001", ["10.0.0.2"])
    with pytest.raises(ssl.SSLCertVerificationError, match=r"certificate verify failed"):
        shaken(folder / "nodes" / "head", tmp_path / "theirs" / "nodes" / "h001", "10.0.0.1")


def test_authority_signs_nodes_and_no_further_authority(folder):
    own = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    node = x509.load_pem_x509_certificate((folder / "nodes" / "head" / "node.crt").read_bytes())
    assert is_signed_by(node, [own]) and not is_signed_by(own, [node])
    assert own.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_renewed_node_keeps_its_names_and_gets_a_new_key_and_serial(folder):
    home = folder / "nodes" / "h001"
    before, key = read_certificate(home / "node.crt"), (home / "node.key").read_bytes()
    after = certs.make_node(folder, "h001", days=30, renew=True)
    assert (after.addresses, after.names) == (before.addresses, before.names)
    assert after.serial != before.serial and after.days_left <= 30 and (home / "node.key").read_bytes() != key
    assert shaken(folder / "nodes" / "head", home, "10.0.0.1")["said"] == b"x"


def test_renewed_authority_is_trusted_with_certificates_of_before(folder):
    certs.make_authority(folder, days=20, renew=True)
    after = read_certificate(folder / "ca.crt")
    node = x509.load_pem_x509_certificate((folder / "nodes" / "head" / "node.crt").read_bytes())
    assert after.days_left <= 20
    assert is_signed_by(node, [x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())])


def test_authority_is_not_made_twice(folder):
    key = (folder / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match=r"authority in this folder already.*Fix: .*--renew"):
        certs.make_authority(folder)
    assert (folder / "ca.key").read_bytes() == key


def test_token_is_not_made_twice(folder):
    certs.make_token(folder / "token")
    token = (folder / "token").read_text()
    with pytest.raises(ConfigError, match=r"a token already.*Fix: "):
        certs.make_token(folder / "token")
    assert (folder / "token").read_text() == token and len(token) == 64


@pytest.mark.parametrize(("words", "message"), [
    (("h002", ["ten"]), r"'ten' is no IP address. Fix: --ip 10.0.0.1"),
    (("h002", []), r"node h002: no address given.*Fix: fedray cluster certs node h002 --ip"),
    (("h001", ["10.0.0.2"]), r"node h001 has a certificate already. Fix: add --renew"),
    (("../h", ["10.0.0.2"]), r"'../h' is no name of a node. Fix: "),
    (("h002", ["10.0.0.2"], ["h\u00f6he"]), r"is no DNS name. Fix: "),
    (("h002", ["10.0.0.2"], ["bad name"]), r"'bad name' is no DNS name. Fix: --dns h001.example"),
    (("h002", ["10.0.0.2"], ["a..b"]), r"'a..b' is no DNS name"),
    (("h002", ["10.0.0.2"], (), 0), r"--days 0: .*Fix: --days 365"),
    (("h002", ["10.0.0.2"], (), 99999999), r"--days 99999999: .* 1 to 36500 days. Fix: --days 365"),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(folder, words, message):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        certs.make_node(folder, *words)
    assert sorted(folder.rglob("*")) == before


def test_node_without_an_authority_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no authority in this folder. Fix: fedray cluster certs init"):
        certs.make_node(tmp_path, "h001", ["10.0.0.2"])


def test_authority_with_the_key_of_another_is_refused(folder, tmp_path):
    certs.make_authority(tmp_path / "theirs")
    (folder / "ca.key").write_bytes((tmp_path / "theirs" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca.key is not the key of ca.crt. Fix: "):
        certs.make_node(folder, "h002", ["10.0.0.3"])


def test_show_tells_every_certificate_and_fails_where_one_has_ended(folder, capsys, monkeypatch):
    assert call("show", "--folder", folder) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("GOOD")] == [
        ["GOOD", "authority"], ["GOOD", "h001"], ["GOOD", "head"]]  # fmt: skip
    monkeypatch.setattr(certs, "EARLIER", dt.timedelta(days=10))
    real = certs._validity
    monkeypatch.setattr(certs, "_validity", lambda builder, days, latest=None: real(builder, -days, latest))
    certs.make_node(folder, "h003", ["10.0.0.4"], days=2)
    assert call("show", "--folder", folder, "--json") == 1
    shown = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert shown["h003"]["days_left"] < -1 and shown["h001"]["days_left"] > 300


def test_commands_make_what_a_node_needs_and_say_where_it_goes(tmp_path, capsys):
    assert call("init", "--folder", tmp_path) == 0
    assert call("node", "h001", "--ip", "10.0.0.2", "--folder", tmp_path) == 0
    assert call("token", "--folder", tmp_path) == 0
    said = capsys.readouterr().out
    assert "export RAY_USE_TLS=1" in said and "export RAY_AUTH_MODE=token" in said
    names = {path.name for path in (tmp_path / "nodes" / "h001").iterdir()}
    assert names == {"node.crt", "node.key", "ca.crt"}
    assert (tmp_path / "token").read_text() not in said


def test_authority_that_was_stopped_before_its_certificate_is_made_again(tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    real = certs._write
    monkeypatch.setattr(certs, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        certs.make_authority(tmp_path)
    assert (tmp_path / "ca.key").exists() and not (tmp_path / "ca.crt").exists()
    monkeypatch.setattr(certs, "_write", real)
    certs.make_authority(tmp_path)
    certs.make_node(tmp_path, "h001", ["10.0.0.2"])


def test_days_that_cannot_be_leave_no_half_of_an_authority(tmp_path):
    with pytest.raises(ConfigError, match=r"--days 99999999: "):
        certs.make_authority(tmp_path / "new", days=99999999)
    assert not (tmp_path / "new").exists()


def test_key_that_has_signed_nodes_is_not_made_anew_where_its_certificate_is_gone(folder):
    key = (folder / "ca.key").read_bytes()
    (folder / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"ca.crt is not in this folder.*copy nodes/h001/ca.crt back"):
        certs.make_authority(folder)
    assert (folder / "ca.key").read_bytes() == key


def test_node_that_was_stopped_before_its_certificate_is_made_again(folder):
    (folder / "nodes" / "h001" / "node.crt").unlink()
    assert certs.make_node(folder, "h001", ["10.0.0.2"]).addresses[0] == "10.0.0.2"


def test_no_certificate_outlives_its_authority_and_that_is_said(tmp_path, capsys):
    call("init", "--days", 20, "--folder", tmp_path)
    call("node", "h001", "--ip", "10.0.0.2", "--folder", tmp_path)
    ends = read_certificate(tmp_path / "ca.crt").ends
    assert read_certificate(tmp_path / "nodes" / "h001" / "node.crt").ends == ends
    said = capsys.readouterr().err
    assert f"ends with its authority, on {ends:%Y-%m-%d}, and not after 365 days. Fix: " in said
    call("node", "h002", "--ip", "10.0.0.3", "--days", 10, "--folder", tmp_path)
    assert "authority" not in capsys.readouterr().err


def test_authority_that_has_ended_signs_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(certs, "EARLIER", dt.timedelta(days=10))
    real = certs._validity
    monkeypatch.setattr(certs, "_validity", lambda builder, days, latest=None: real(builder, -days, latest))
    certs.make_authority(tmp_path, days=2)
    with pytest.raises(ConfigError, match=r"the authority ended on .* Fix: .*certs init --renew"):
        certs.make_node(tmp_path, "h001", ["10.0.0.2"])


@pytest.mark.parametrize("words", [["init"], ["token"], ["node", "h001", "--ip", "10.0.0.2"], ["show"]])
def test_folder_that_is_a_file_is_refused_by_name(tmp_path, words):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"Fix: "):
        call(*words, "--folder", tmp_path / "file")


def test_home_is_meant_in_the_name_of_a_token_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    call("token", "--file", "~/here/token")
    assert (tmp_path / "here" / "token").exists() and not (tmp_path / "~").exists()


def test_token_that_was_stopped_before_it_was_written_is_made_again(tmp_path):
    (tmp_path / "token").touch()
    certs.make_token(tmp_path / "token")
    assert len((tmp_path / "token").read_text()) == 64


def test_folder_without_an_authority_is_told_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"ca.crt: no certificate to read .*Fix: fedray cluster certs init"):
        call("show", "--folder", tmp_path)
