"""A client's connection from its first byte to its login: encryption, cancels, proof, welcome.

Costs little for whoever has not proven anything: a bounded buffer, no task, no server connection.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Final, cast

from pooler.access.candidate import Proof
from pooler.client import ClientDuties, ClientSession
from pooler.databases import CONSOLE
from pooler.entrance.application_name import origin_of, with_host
from pooler.entrance.extended_only import protocol_of
from pooler.entrance.fitting import Parameters, passed_on, wanted
from pooler.entrance.login_duties import LoginDuties
from pooler.pool import Pool
from pooler.reasons import CLIENT_GONE, CLIENT_QUIT, Ending, Reason
from pooler.replication import Passage
from pooler.server import ServerSession
from pooler.session_state.session import APPLICATION_NAME
from pooler.session_state.sharing import Fitted
from pooler.tls.connection import TlsConnection, explain
from pooler.tls.contexts import ALPN
from pooler.tls.handshakes import cause_of
from protocol.errors import ClientViolation, ProtocolViolation
from protocol.kinds import LONG_KEYS_MINOR, PASSWORD, TERMINATE
from protocol.messages import (
    AUTHENTICATION_OK,
    READY_IDLE,
    backend_key_data,
    fatal,
    first_message,
    negotiate_protocol_version,
    notice,
)
from protocol.startup import Cancel, Encryption, FirstPacket, Replication, Startup

MAX_PASSWORD_SIZE: Final = 10_000
"""Bytes of a password message; the tokens that some clouds use as passwords take up to 2,000."""
MAX_EARLY_SIZE: Final = 16 * 1024
"""Bytes. A client that sends more than this before it is its turn is not read from until then."""
_SECRET_SIZE: Final = 4
_LONG_SECRET_SIZE: Final = 32  # protocol 3.2 and later

_TLS_BEGINS: Final = 0x16
"""The first byte of TLS without an SSLRequest before it (RFC 8446, section 5.1: handshake). As the first byte of a
packet's length it would make that longer than any may be."""
_TLS_REQUIRED: Final = Ending(
    Reason.TLS_REQUIRED,
    "28000",
    "connection requires TLS (client_tls_sslmode)",
    hint="Set sslmode=require, or what your driver calls it.",
)
_DATABASE_TO_REPLICATE: Final = (
    "Physical replication needs a database to find its way: give it an entry of that name in [databases], or one for *."
)
_NO_SIMPLE_QUERIES: Final = Ending(
    Reason.LOGIN_REFUSED,
    "0A000",
    "replication takes simple queries, and these are not allowed (disable_pqexec)",
)


# The stages of a login: what the client's next bytes are for. Plain ints, as an Enum's members cost a call each time.
_FIRST_PACKET: Final = 0
_HELLO: Final = 1
"""TLS. Until the first of it comes, a handshake costs nothing, and takes nobody's place."""
_HANDSHAKE: Final = 2
"""TLS, or nobody yet: it waits for its turn."""
_PLACE: Final = 3
"""Nobody yet: it waits for a place among max_client_conn."""
_DECISION: Final = 4
"""Nobody yet: the gate makes up its mind."""
_PROOF: Final = 5
_CANCEL: Final = 6
"""Nobody: it has brought a CancelRequest."""
_POOL: Final = 7
"""Nobody yet: it waits for the first server of its pool."""


class ClientLogin(asyncio.Protocol):
    """One connection that is not logged in yet; becomes a ClientSession."""

    __slots__ = (
        "_buffer",
        "_direct",
        "_duties",
        "_encryption_asked",
        "_pool",
        "_proof",
        "_stage",
        "_wanted",
        "ended",
        "id",
        "placed_beside",
        "rule",
        "since",
        "startup",
        "transport",
        "waiting_since",
    )

    transport: asyncio.Transport
    id: int
    startup: Startup
    _proof: Proof
    _pool: Pool[ServerSession]

    def __init__(self, duties: LoginDuties) -> None:
        self._duties = duties
        self._stage = _FIRST_PACKET
        self._buffer = b""
        self._encryption_asked: tuple[Encryption, ...] = ()
        self._direct = False
        """TLS has begun without an SSLRequest."""
        self._wanted: Parameters = ()
        """The settings that it gets of those that it asks for."""
        self.ended = False
        self.placed_beside = False
        """Its place is none of max_client_conn, as it has come for the console."""
        self.rule = ""
        self.since = self.waiting_since = 0.0

    def take_duties(self, duties: Mapping[str, ClientDuties]) -> None:
        """As a session it will have these."""
        self._duties = self._duties._replace(client_duties=duties)

    @property
    def tls(self) -> TlsConnection | None:
        """See Candidate."""
        return self.transport if isinstance(self.transport, TlsConnection) else None

    @property
    def identified(self) -> bool:
        """It has said who it is."""
        return self._stage not in (_FIRST_PACKET, _HELLO, _HANDSHAKE, _CANCEL)

    @property
    def proven(self) -> bool:
        """It has proven that."""
        return self._stage == _POOL

    @property
    def pool(self) -> Pool[ServerSession]:
        """The pool that it waits for, once it has proven who it is."""
        return self._pool

    @property
    def at_console(self) -> bool:
        """It wants the console, and no database."""
        return self.startup.database in CONSOLE

    @property
    def _replicates(self) -> bool:
        return self.startup.replication is not Replication.NONE

    @property
    def asked(self) -> bool:
        """It is its turn to say something, so that it is let in."""
        return self._stage == _PROOF

    @property
    def undecided(self) -> bool:
        """It has said all that it can say, and Postgres is asked what to make of it."""
        return self._stage == _DECISION

    # --- what arrives

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self.transport = cast("asyncio.Transport", transport)
        self.id = self._duties.next_id()
        self.since = self._duties.now()
        self._duties.arrived(self)

    def data_received(self, data: bytes) -> None:
        """Take the first packets, then the proof; what comes too early is kept."""
        if self.ended:
            return
        self._buffer += data
        if len(self._buffer) > MAX_EARLY_SIZE:
            self.transport.pause_reading()
        self._advance()

    def _advance(self) -> None:
        try:
            self._take_what_is_due()
        except ProtocolViolation as violation:
            self.end(Ending(Reason.CLIENT_VIOLATION, violation.sqlstate, violation.message))

    def _take_what_is_due(self) -> None:
        while self._buffer and not self.ended:
            if self._stage == _FIRST_PACKET:
                if self._buffer[0] == _TLS_BEGINS and self._may_begin_tls():
                    self._direct = True
                    self._ask_for_handshake()
                    return
                found = self._duties.startups.read(self._buffer)
                if found is None:
                    return
                packet, size = found
                self._buffer = self._buffer[size:]
                self._take_first_packet(packet)
            elif self._stage == _HELLO:
                self._ask_for_handshake()
            elif self._stage == _PROOF:
                if self._buffer[0] not in (PASSWORD, TERMINATE):
                    # Not to be waited for until it is whole: such as another StartupMessage.
                    raise ClientViolation(f"expected password response, got message type {self._buffer[0]}")
                message = first_message(self._buffer, MAX_PASSWORD_SIZE)
                if message is None:
                    return
                kind, payload, size = message
                self._buffer = self._buffer[size:]
                self._take_proof(kind, payload)
            else:
                return

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone before it was logged in."""
        self._finish(CLIENT_GONE)

    # --- first packets

    def _take_first_packet(self, packet: FirstPacket) -> None:
        if isinstance(packet, Startup):
            self.startup = packet
            if self._duties.tls is not None and self._duties.tls.required and self.tls is None:
                self.end(_TLS_REQUIRED)
                return
            self._stage = _PLACE
            self._duties.identified(self)
        elif isinstance(packet, Cancel):
            self._stage = _CANCEL
            self._duties.cancel(packet.key, self._cancelled)
        else:
            self._answer_encryption_request(packet)

    def _answer_encryption_request(self, request: Encryption) -> None:
        """Begin TLS; or answer N: the client goes on in clear, or gives up.

        What came behind the request was sent before this answer; whoever slips bytes in there (CVE-2021-23222) gets
        no further. Each kind of encryption may be asked for once, and none inside of TLS.
        """
        if self._buffer:
            raise ClientViolation("received unencrypted data after an encryption request")
        if request in self._encryption_asked or self.tls is not None:
            raise ClientViolation("encryption was asked for twice")
        self._encryption_asked += (request,)
        if request is Encryption.SSL and self._duties.tls is not None:
            self._stage = _HELLO
            self.transport.write(b"S")
        else:
            self.transport.write(b"N")

    # --- TLS

    def _may_begin_tls(self) -> bool:
        return self._duties.tls is not None and not self._encryption_asked and self.tls is None

    def _ask_for_handshake(self) -> None:
        self._stage = _HANDSHAKE
        if self._duties.tls is not None:
            self._duties.tls.handshakes.begin(self)

    def shake_hands(self) -> None:
        """See handshakes.Guest."""
        offer = self._duties.tls
        if offer is None or self.ended:
            return
        data, self._buffer = self._buffer, b""
        if len(data) > MAX_EARLY_SIZE:
            self.transport.resume_reading()
        below = self.transport
        tls = self.transport = TlsConnection(below, self, offer.identity.context, self._secured, turns=offer.handshakes)
        tls.data_received(data)

    def _secured(self, error: OSError | None) -> None:
        """The handshake is done, or has failed."""
        offer, tls = self._duties.tls, self.tls
        if offer is None or tls is None or self.ended:
            return
        cause, message = "", ""
        if error is not None:
            cause, message = cause_of(error), explain(error)
        elif self._direct and tls.ssl.selected_alpn_protocol() != ALPN:
            cause, message = "alpn", f"TLS without an SSLRequest takes ALPN {ALPN!r}"
        elif tls.ssl.session_reused and tls.peer_has_expired:
            cause, message = "client_certificate", "the certificate of the session that is resumed has expired"
        self._stage = _FIRST_PACKET
        offer.handshakes.done(self, cause)
        if isinstance(error, ssl.SSLError):
            self.transport = tls.below
        if message:
            self.end(Ending(Reason.TLS_FAILED, message=message))

    def too_slow(self) -> None:
        """See handshakes.Guest."""
        self.end(Ending(Reason.TLS_FAILED, message="the TLS handshake took too long while others waited for theirs"))

    def _cancelled(self) -> None:
        """The cancel has been carried out, or led nowhere; the client is not told which (as Postgres does)."""
        self._finish(None)
        self.transport.close()

    # --- the proof

    def go_on(self) -> None:
        """There is a place for this client: let it prove who it is."""
        if self.ended:
            return
        startup = self.startup
        if self._replicates and self._duties.current.settings.disable_pqexec:
            self.end(_NO_SIMPLE_QUERIES)
            return
        if startup.negotiate:
            self.transport.write(negotiate_protocol_version(startup.minor, startup.unknown_options))
        self._stage = _DECISION
        if self.at_console and self._duties.reception.knows(self):
            self.let_in()
        else:
            self._duties.gate.examine(self)

    def ask(self, proof: Proof) -> None:
        """See Candidate."""
        self._proof = proof
        self._stage = _PROOF
        self.transport.write(proof.request)
        if self._buffer:
            self.transport.resume_reading()
            self._advance()

    def _take_proof(self, kind: int, payload: bytes) -> None:
        if kind == TERMINATE:
            self._finish(CLIENT_QUIT)
            self.transport.close()
            return
        self._stage = _DECISION
        out = self._duties.gate.hear(self, self._proof, payload)
        if out is not None:
            self._stage = _PROOF
            self.transport.write(out)

    def refuse(self, ending: Ending) -> None:
        """See Candidate."""
        if ending.reason is Reason.LOGIN_FAILED and not self.ended:
            self._finish(ending)
            self._duties.turn_away(self.transport, _farewell(ending))
        else:
            self.end(ending)

    def let_in(self, out: bytes = b"", user: str = "") -> None:
        """See Candidate."""
        if self.at_console:
            self._enter_console(out)
            return
        found = self._duties.pool_of(user or self.startup.user, self.startup.database)
        if isinstance(found, Ending):
            physical = self.startup.replication is Replication.PHYSICAL
            hint = _DATABASE_TO_REPLICATE if physical and found.reason is Reason.NO_SUCH_DATABASE else found.hint
            self.end(found._replace(hint=hint))
            return
        self._stage = _POOL
        pool = self._pool = found
        if self._replicates:
            self.transport.write(out)
            self._duties.passages.begin(self, pool, self._server_parameters())
            return
        settings = self._wanted = wanted(self.startup, self._duties.current.settings)
        if settings:
            fitted = self._duties.fittings.find(pool, settings)
            if fitted is not None:
                self._enter(out, fitted)
                return
        elif pool.welcome:
            self._enter(out, self._duties.fittings.plain(pool))
            return
        if out:
            self.transport.write(out)
        if settings:
            self._duties.fittings.begin(pool, settings, self)
        else:
            pool.greet(self, self._duties.now())

    def _server_parameters(self) -> dict[str, str]:
        """Return what a server connection of its own is opened with."""
        settings = self._duties.current.settings
        parameters = passed_on(self.startup, settings)
        if settings.application_name_add_host:
            origin = origin_of(self.transport, settings.listen_port)
            parameters[APPLICATION_NAME] = with_host(parameters.get(APPLICATION_NAME, ""), origin)
        return parameters

    # --- the welcome

    def welcome(self) -> None:
        """See pool.Newcomer.welcome."""
        if not self.ended:
            self._enter(b"", self._duties.fittings.plain(self._pool))

    def fitted(self, fitted: Fitted) -> None:
        """See fitting.Guest.fitted."""
        if not self.ended:
            self._enter(b"", fitted)

    def _enter(self, out: bytes, fitted: Fitted) -> None:
        duties = self._duties
        pool = self._pool
        key = self._new_key()
        settings = duties.current.settings
        if settings.application_name_add_host:
            fitted = duties.fittings.add_host(pool, fitted, origin_of(self.transport, settings.listen_port))
        session = ClientSession(
            self.id, pool, self.transport, key, duties.client_duties[pool.mode], self.startup, fitted.profile
        )
        duties.clients[key] = session
        self.transport.write(out + self._greeting(fitted.welcome, key))
        self.ended = True
        duties.left(self, None)
        duties.joined(session, self)
        protocol = protocol_of(session, simple_queries=not settings.disable_pqexec)
        self.transport.set_protocol(protocol)
        if self._buffer:
            self.transport.resume_reading()
            protocol.data_received(self._buffer)

    def _greeting(self, welcome: bytes, key: bytes) -> bytes:
        message = self._duties.current.settings.login_notify_message
        told = notice(message) if message else b""
        return b"".join((AUTHENTICATION_OK, welcome, backend_key_data(key), told, READY_IDLE))

    def pass_on(self, passage: Passage, welcome: bytes) -> None:
        """See replication.Guest."""
        duties = self._duties
        key = self._new_key()
        self.transport.write(self._greeting(welcome, key))
        self.ended = True
        duties.left(self, None)
        duties.passed_on(passage, self)
        passage.begin(key, self._buffer)

    def _enter_console(self, out: bytes) -> None:
        duties = self._duties
        key = self._new_key()
        session = duties.reception.receive(self, key)
        if isinstance(session, Ending):
            self.end(session)
            return
        self._stage = _POOL
        welcome = duties.reception.welcome
        self.transport.write(b"".join((out, AUTHENTICATION_OK, welcome, backend_key_data(key), READY_IDLE)))
        self.ended = True
        duties.left(self, None)
        self.transport.set_protocol(session)
        if self._buffer:
            self.transport.resume_reading()
            session.data_received(self._buffer)

    def _new_key(self) -> bytes:
        secret_size = _SECRET_SIZE if self.startup.minor < LONG_KEYS_MINOR else _LONG_SECRET_SIZE
        return self._duties.new_key(self.id, secret_size)

    # --- the end

    def end(self, ending: Ending) -> None:
        """Tell the client why, and close the connection."""
        if not self.ended:
            self._finish(ending)
            if ending.sqlstate and self._stage not in (_HELLO, _HANDSHAKE):  # nothing in clear where TLS is awaited
                self.transport.write(_farewell(ending))
            self._duties.linger(self.transport)

    def _finish(self, ending: Ending | None) -> None:
        if self.ended:
            return
        self.ended = True
        if self._stage in (_HELLO, _HANDSHAKE) and self._duties.tls is not None:
            self._duties.tls.handshakes.done(self, ending.reason.value if ending is not None else "")
        if self._stage == _POOL:
            self._pool.newcomers.pop(self, None)
            if self._replicates:
                self._duties.passages.leave(self)
            elif self._wanted:
                self._duties.fittings.leave(self._pool, self._wanted, self)
        self._duties.left(self, ending)


def _farewell(ending: Ending) -> bytes:
    return fatal(ending.sqlstate, ending.message, ending.detail, ending.hint)
