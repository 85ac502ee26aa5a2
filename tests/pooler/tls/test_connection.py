"""TLS with OpenSSL on the other end, its bytes cut anywhere: nothing is lost, nothing is invented, nothing stays."""

import gc
import ssl
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from pooler.tls.connection import HandshakeError, secure
from pooler.tls.contexts import client_context, server_context
from tests.pooler.tls.floods import Sealer
from tests.pooler.tls.peer import Cut, Link, Notes, Peer, client_settings, in_pieces_of, link, settings, trusting, whole
from tests.support.certificates import Certificates
from tests.support.transport import MockTransport

CUTS = [whole, in_pieces_of(1), in_pieces_of(7), in_pieces_of(1000)]
any_cut = pytest.mark.parametrize("cut", CUTS, ids=["whole", "1", "7", "1000"])
LARGE = bytes(range(256)) * 2000


def nothing_stays(a_link: Link) -> bool:
    buffers = a_link.context.buffers
    return not buffers.incoming.pending and not buffers.outgoing.pending


@any_cut
def test_both_sides_hear_each_other(certificates: Certificates, cut: Cut) -> None:
    a_link = link(certificates, cut=cut)
    assert a_link.outcomes == [None]
    a_link.receive(a_link.peer.says(b"question"))
    assert a_link.notes.data == b"question"
    a_link.tls.write(b"answer")
    assert a_link.peer.hears(a_link.transport.take()) == b"answer"
    assert nothing_stays(a_link)


@any_cut
def test_we_are_the_client(certificates: Certificates, cut: Cut) -> None:
    context = server_context(settings(server_tls_sslmode="verify-full", server_tls_ca_file=certificates.ca))
    a_link = Link(
        context, Peer(client_context(client_settings(certificates.ec)), server_side=True), server_side=False, cut=cut
    ).shake_hands()
    assert a_link.outcomes == [None]
    a_link.receive(a_link.peer.says(b"hello"))
    assert a_link.notes.data == b"hello"
    assert a_link.tls.ssl.selected_alpn_protocol() == "postgresql"
    assert nothing_stays(a_link)


@any_cut
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_much_arrives_whole_either_way(certificates: Certificates, cut: Cut, version: ssl.TLSVersion) -> None:
    context = client_context(client_settings(certificates.ec))
    a_link = Link(context, Peer(trusting(certificates, maximum_version=version)), cut=cut).shake_hands()
    a_link.receive(a_link.peer.says(LARGE) + a_link.peer.says(b"end"))
    assert a_link.notes.data == LARGE + b"end"
    a_link.tls.write(LARGE)
    a_link.tls.write(b"end")
    assert a_link.peer.hears(a_link.transport.take()) == LARGE + b"end"
    assert nothing_stays(a_link)


def test_a_chunk_of_many_records_is_delivered_at_once(certificates: Certificates) -> None:
    a_link = link(certificates)
    a_link.receive(b"".join(a_link.peer.says(b"%d," % number) for number in range(50)))
    assert a_link.notes.chunks == 1
    assert a_link.notes.data == b"".join(b"%d," % number for number in range(50))


def test_what_comes_right_behind_the_handshake_is_delivered(certificates: Certificates) -> None:
    a_link = Link(client_context(client_settings(certificates.ec)), Peer(trusting(certificates)))
    a_link.receive(a_link.peer.shake())
    a_link.receive(a_link.peer.shake(a_link.transport.take()) + a_link.peer.says(b"startup"))
    assert a_link.outcomes == [None]
    assert a_link.notes.data == b"startup"


def test_connections_share_buffers_and_never_bytes(certificates: Certificates) -> None:
    """Handshakes and records of many connections, interleaved record by record, some of them broken off."""
    context = client_context(client_settings(certificates.ec))
    links = [Link(context, Peer(trusting(certificates)), cut=in_pieces_of(11)) for _ in range(12)]
    flights = [each.peer.shake() for each in links]
    for at in range(0, 4000, 100):
        for each, flight in zip(links, flights, strict=True):
            each.receive(flight[at : at + 100])
    for number, each in enumerate(links):
        if number % 3 == 0:
            each.transport.lose()
            continue
        each.receive(each.peer.shake(each.transport.take()))
    staying = [each for number, each in enumerate(links) if number % 3]
    for number, each in enumerate(staying):
        each.tls.write(b"for %d" % number)
        each.receive(each.peer.says(b"from %d" % number)[:-1])
    for number, each in enumerate(staying):
        assert each.peer.hears(each.transport.take()) == b"for %d" % number
        assert each.notes.data == b""


def test_what_is_delivered_may_be_answered_on_another_connection(certificates: Certificates) -> None:
    context = client_context(client_settings(certificates.ec))
    other = Link(context, Peer(trusting(certificates))).shake_hands()

    class Forwards(Notes):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            other.tls.write(data)
            other.tls.close()

    a_link = Link(context, Peer(trusting(certificates)), notes=Forwards()).shake_hands()
    a_link.receive(a_link.peer.says(b"one") + a_link.peer.says(b"two") + a_link.peer.says(b"three")[:-5])
    assert other.peer.hears(other.transport.take()) == b"onetwo"
    assert nothing_stays(a_link)


def test_the_protocol_may_change_within_a_chunk(certificates: Certificates) -> None:
    """As from login to session: what follows is the new one's."""
    later = Notes()

    class First(Notes):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            a_link.tls.set_protocol(later)

    a_link = link(certificates, notes=First())
    a_link.receive(a_link.peer.says(b"login"))
    a_link.receive(a_link.peer.says(b"query"))
    assert (a_link.notes.data, later.data) == (b"login", b"query")
    a_link.transport.lose()
    assert (a_link.notes.losses, later.losses) == ([], [None])


# --- slowness


def test_nothing_is_delivered_while_reading_is_paused(certificates: Certificates) -> None:
    a_link = link(certificates)
    a_link.tls.pause_reading()
    a_link.receive(a_link.peer.says(b"later"))
    assert a_link.notes.data == b""
    a_link.tls.resume_reading()
    a_link.transport.receive()
    assert a_link.notes.data == b"later"


def test_a_slow_reader_is_told_of_to_the_protocol(certificates: Certificates) -> None:
    a_link = link(certificates, slow=True)
    a_link.tls.write(LARGE)
    assert a_link.notes.paused
    assert a_link.tls.get_write_buffer_size() > len(LARGE)
    assert a_link.peer.hears(a_link.transport.take()) == LARGE
    assert not a_link.notes.paused


# --- ends


def test_the_peers_goodbye_ends_the_connection_with_ours(certificates: Certificates) -> None:
    a_link = link(certificates)
    a_link.receive(a_link.peer.says(b"last") + a_link.peer.says_goodbye() + b"garbage")
    assert (a_link.notes.data, a_link.notes.ended) == (b"last", 1)
    assert a_link.transport.closing
    a_link.peer.hears(a_link.transport.take())
    assert a_link.peer.told_goodbye
    assert nothing_stays(a_link)


def test_who_has_finished_may_still_be_answered(certificates: Certificates) -> None:
    a_link = link(certificates, notes=Notes(stays=True))
    a_link.receive(a_link.peer.says_goodbye())
    assert not a_link.transport.closing
    a_link.tls.write(b"answer")
    assert a_link.peer.hears(a_link.transport.take()) == b"answer"
    a_link.receive(b"garbage")
    assert a_link.notes.ended == 1
    assert nothing_stays(a_link)


def test_an_end_without_goodbye_is_an_end(certificates: Certificates) -> None:
    a_link = link(certificates)
    assert not a_link.tls.eof_received()
    assert a_link.notes.ended == 1


def test_closing_says_goodbye_once_and_sends_nothing_after_it(certificates: Certificates) -> None:
    a_link = link(certificates)
    a_link.tls.write(b"bye")
    a_link.tls.close()
    a_link.tls.write(b"more")
    a_link.tls.close()
    assert a_link.peer.hears(a_link.transport.take()) == b"bye"
    assert a_link.peer.told_goodbye
    assert a_link.tls.is_closing()


def test_the_end_of_stream_is_a_goodbye_and_what_comes_then_is_dropped(certificates: Certificates) -> None:
    """As Departures do it: the error arrives, and whatever the client had on its way makes no difference."""
    a_link = link(certificates)
    a_link.tls.pause_reading()
    a_link.tls.write(b"error")
    a_link.tls.write_eof()
    assert a_link.transport.eof
    a_link.receive(a_link.peer.says(b"more"))
    assert a_link.notes.data == b""
    assert a_link.peer.hears(a_link.transport.take()) == b"error"
    assert a_link.peer.told_goodbye


def test_aborting_sends_nothing(certificates: Certificates) -> None:
    a_link = link(certificates)
    a_link.tls.abort()
    a_link.tls.write(b"more")
    assert a_link.transport.aborted
    assert a_link.transport.take() == b""


def test_a_lost_connection_is_let_go_of(certificates: Certificates) -> None:
    a_link = link(certificates)
    a_link.transport.lose()
    assert a_link.notes.losses == [None]
    assert a_link.tls.get_protocol() is not a_link.notes
    a_link.tls.write(b"more")
    assert a_link.transport.take() == b""


def test_an_answer_to_what_came_before_a_broken_record_does_not_hide_what_was_broken(
    certificates: Certificates,
) -> None:
    class Answers(Notes):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            a_link.tls.write(b"answer")

    a_link = link(certificates, notes=Answers())
    a_link.receive(a_link.peer.says(b"question") + a_link.peer.says(b"more")[:-1] + b"!")
    assert a_link.notes.data == b"question"
    assert "bad record mac" in a_link.tls.failure


def test_a_key_update_is_answered(certificates: Certificates, tmp_path: Path) -> None:
    log = tmp_path / "keys"
    a_link = link(certificates, keys=log)
    a_link.receive(Sealer(log).key_update())
    assert a_link.peer.hears(a_link.transport.take()) == b""  # the answer is one, and the peer understands it
    a_link.tls.write(b"on we go")
    assert a_link.peer.hears(a_link.transport.take()) == b"on we go"


def test_a_flood_of_key_updates_ends_the_connection(certificates: Certificates, tmp_path: Path) -> None:
    """Each takes time and an answer: a peer that does not read those would fill our memory with them."""
    log = tmp_path / "keys"
    a_link = link(certificates, keys=log, slow=True)
    sealer = Sealer(log)
    a_link.receive(b"".join(sealer.key_update() for _ in range(2000)))
    assert a_link.transport.closing
    assert len(a_link.transport.sent) < 10_000
    assert a_link.tls.failure == "too many key updates or renegotiations"
    assert nothing_stays(a_link)


@any_cut
def test_what_is_no_tls_ends_the_connection(certificates: Certificates, cut: Cut) -> None:
    a_link = link(certificates, cut=cut)
    a_link.receive(b"\x17\x03\x03\x00\x20" + bytes(32) + b"Q\0\0\0\x0eselect 1\0")
    assert a_link.transport.closing
    assert a_link.notes.data == b""
    assert "bad record mac" in a_link.tls.failure
    assert nothing_stays(a_link)


def test_who_reads_nothing_gets_no_alert_either(certificates: Certificates) -> None:
    a_link = link(certificates, slow=True)
    a_link.tls.write(LARGE)
    a_link.receive(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert a_link.transport.aborted


# --- handshakes that fail


@any_cut
def test_garbage_instead_of_a_handshake_gives_the_transport_back(certificates: Certificates, cut: Cut) -> None:
    a_link = Link(client_context(client_settings(certificates.ec)), Peer(trusting(certificates)), cut=cut)
    a_link.receive(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[:16])
    (error,) = a_link.outcomes
    assert isinstance(error, ssl.SSLError)
    assert a_link.transport.get_protocol() is a_link.notes
    assert nothing_stays(a_link)


def test_a_client_that_does_not_trust_us_is_heard(certificates: Certificates) -> None:
    context = client_context(client_settings(certificates.untrusted))
    a_link = Link(context, Peer(trusting(certificates)))
    a_link.receive(a_link.peer.shake())
    with pytest.raises(ssl.SSLCertVerificationError):
        a_link.peer.shake(a_link.transport.take())
    a_link.receive(a_link.peer.outgoing.read())
    (error,) = a_link.outcomes
    assert isinstance(error, ssl.SSLError)
    assert "UNKNOWN_CA" in str(error.reason)


def test_who_goes_during_the_handshake_is_told_of_twice(certificates: Certificates) -> None:
    """To whoever waits for the handshake, and to the protocol."""
    a_link = Link(client_context(client_settings(certificates.ec)), Peer(trusting(certificates)))
    a_link.receive(a_link.peer.shake()[:50])
    assert not a_link.tls.eof_received()
    a_link.transport.lose()
    (error,) = a_link.outcomes
    assert isinstance(error, ConnectionResetError)
    assert a_link.notes.losses == [None]


def test_nothing_is_said_before_the_handshake_is_done(certificates: Certificates) -> None:
    a_link = Link(client_context(client_settings(certificates.ec)), Peer(trusting(certificates)))
    a_link.tls.write(b"in the clear?")
    a_link.tls.write_eof()
    assert a_link.transport.take() == b""
    a_link.receive(a_link.peer.shake())
    assert a_link.outcomes == []


async def test_a_name_of_no_host_is_a_failed_handshake(certificates: Certificates) -> None:
    context = server_context(settings(server_tls_sslmode="verify-full", server_tls_ca_file=certificates.ca))
    transport = MockTransport()
    with pytest.raises(HandshakeError, match="server_hostname"):
        await secure(transport, Notes(), context, "")
    assert transport.aborted


# --- sessions


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_keeps_its_session_resumes_it(certificates: Certificates, version: ssl.TLSVersion) -> None:
    context = client_context(client_settings(certificates.ec))
    remembered = trusting(certificates, maximum_version=version)
    first = Link(context, Peer(remembered)).shake_hands()
    first.tls.write(b"welcome")
    assert first.peer.hears(first.transport.take()) == b"welcome"
    second = Link(context, Peer(remembered, session=first.peer.ssl.session)).shake_hands()
    assert second.outcomes == [None]
    assert second.peer.ssl.session_reused
    assert second.tls.ssl.session_reused


def test_no_tickets_no_sessions(certificates: Certificates) -> None:
    context = client_context(client_settings(certificates.ec, client_tls_tickets=0))
    remembered = trusting(certificates)
    first = Link(context, Peer(remembered)).shake_hands()
    first.tls.write(b"welcome")
    first.peer.hears(first.transport.take())
    assert first.peer.ssl.session is None or not first.peer.ssl.session.has_ticket


def test_a_session_of_before_a_reload_is_not_resumed(certificates: Certificates) -> None:
    """Whoever was verified by other authorities has to be verified again."""
    remembered = trusting(certificates)
    first = Link(client_context(client_settings(certificates.ec)), Peer(remembered)).shake_hands()
    first.tls.write(b"welcome")
    first.peer.hears(first.transport.take())
    after = client_context(client_settings(certificates.ec))
    second = Link(after, Peer(remembered, session=first.peer.ssl.session)).shake_hands()
    assert second.outcomes == [None]
    assert not second.tls.ssl.session_reused


def test_a_resumed_session_knows_whose_certificate_it_was(certificates: Certificates) -> None:
    given = {"client_tls_sslmode": "verify-full", "client_tls_ca_file": certificates.ca}
    context = client_context(client_settings(certificates.ec, **given))
    remembered = trusting(certificates, certificates.client("alice"))
    first = Link(context, Peer(remembered)).shake_hands()
    assert first.tls.peer_names == ("alice",)
    first.tls.write(b"welcome")
    first.peer.hears(first.transport.take())
    second = Link(context, Peer(remembered, session=first.peer.ssl.session)).shake_hands()
    assert second.tls.ssl.session_reused
    assert second.tls.peer_names == ("alice",)


def test_a_resumed_session_tells_that_its_certificate_has_expired(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL verifies certificates in full handshakes only."""
    given = {"client_tls_sslmode": "verify-full", "client_tls_ca_file": certificates.ca}
    a_link = Link(
        client_context(client_settings(certificates.ec, **given)),
        Peer(trusting(certificates, certificates.client("alice"))),
    ).shake_hands()
    before = a_link.tls.peer_has_expired
    monkeypatch.setattr("time.time", lambda: float(ssl.cert_time_to_seconds("Jan  1 00:00:00 2050 GMT")))
    assert (before, a_link.tls.peer_has_expired) == (False, True)
    assert not link(certificates).tls.peer_has_expired


# --- memory


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("said", [b"hello", None])
def test_a_connection_that_is_lost_leaves_no_openssl_behind(certificates: Certificates, said: bytes | None) -> None:
    """Be its handshake done or failed: garbage is collected too rarely for 10 KB each."""
    a_link = Link(client_context(client_settings(certificates.ec)), Peer(trusting(certificates)))
    if said is None:
        a_link.receive(b"GET / HTTP/1.1\r\n\r\n")
    else:
        a_link.shake_hands().receive(a_link.peer.says(said))
        a_link.receive(b"\x17\x03\x03\x00\x20" + bytes(32))
    a_link.outcomes.clear()
    openssl = weakref.ref(a_link.tls.ssl)
    a_link.transport.lose()
    a_link.transport.protocol = None
    del a_link.tls
    assert openssl() is None
