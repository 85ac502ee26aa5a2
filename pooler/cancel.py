"""Cancelling: a client's request is passed on while its query runs, and to nobody else's.

Postgres closes the connection that brought a CancelRequest after it has signalled the backend. Only then is it
settled that the signal can't hit what the server connection is used for next, so until then it is not lent on.
What is for a client of another process goes there.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol

from pooler.client import Clients, ClientSession
from pooler.peers import Peers, as_given_out, key_for_peers
from pooler.reasons import Reason
from pooler.server import ServerSession
from pooler.tls.connection import TlsConnection
from pooler.upstream.address import Address
from pooler.upstream.dial import ConnectFailedError, Conversation, ServerTls, dial, encrypt
from protocol.messages import cancel_request

MAX_AT_ONCE: Final = 32
"""Connections that bring cancels, at the same time; more wait their turn. A storm of clients that give up must not
become a storm of connections that Postgres has to fork for."""
CLOSE_S: Final = 1.0
"""How long the cancels for what nobody waits for any more may take at a shutdown."""

_process_id = Struct("!I").pack


class Beside(Protocol):
    """A server connection that is one client's alone."""

    @property
    def transport(self) -> asyncio.Transport:
        """The connection."""

    @property
    def key(self) -> bytes:
        """Its cancel key."""

    @property
    def peer(self) -> Address:
        """Where it leads."""


class Canceller:
    """Sends CancelRequests to Postgres, a bounded number at a time."""

    def __init__(
        self,
        clients: Clients,
        timeout_s: float,
        on_failure: Callable[[ServerSession, str], None],
        tls: ServerTls | None = None,
        peers: Peers | None = None,
    ) -> None:
        """`timeout_s` bounds how long a cancel may wait and take (cancel_wait_timeout; 0 = no limit).

        `tls` is for cancels of what is encrypted: who could read one could cancel on and on.
        """
        self._clients = clients
        self._peers = peers
        self.tls = tls
        self.timeout_s = timeout_s
        self._on_failure = on_failure
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._under_way: dict[ServerSession, asyncio.Task[None]] = {}
        self._sent: set[ServerSession] = set()
        self.beside: Callable[[bytes], Beside | None] = lambda _key: None
        """Finds the server connection of a client that has one for itself, by its cancel key (replication)."""
        self._under_way_beside: set[asyncio.Task[None]] = set()

    def new_key(self, client: int, secret_size: int) -> bytes:
        """Return a key for a new client: a process id and a secret.

        Without peers the process id, which drivers show, is the `client` of our log.
        """
        if self._peers is None or not self._peers.own_id:
            return _process_id(client & 0x7FFFFFFF) + os.urandom(secret_size)
        while (key := key_for_peers(self._peers.own_id, 4 + secret_size)) in self._clients:
            pass
        return key

    def cancel_client(self, key: bytes, done: Callable[[], None]) -> None:
        """Cancel what the client with `key` is doing, if there is one and it is doing anything; then call `done`."""
        task = None
        client, beside = self._find(key)
        if client is None and beside is None and self._peers is not None and self._peers.own_id:
            client, beside = self._find(as_given_out(key))
            task = self._peers.forward(key) if client is None and beside is None else None
        if client is not None and client.waiting:
            client.cancel_waiting()
        elif client is not None and (server := client.server) is not None and _runs_for_its_client(server):
            task = self.cancel_server(server)
        elif beside is not None:
            task = self._cancel_beside(beside)
        if task is not None:
            task.add_done_callback(lambda _: done())
        else:
            done()

    def _find(self, key: bytes) -> "tuple[ClientSession | None, Beside | None]":
        client = self._clients.get(key)
        return client, self.beside(key) if client is None else None

    def _cancel_beside(self, server: "Beside") -> asyncio.Task[None]:
        task = asyncio.create_task(self._deliver_beside(server))
        self._under_way_beside.add(task)
        task.add_done_callback(self._under_way_beside.discard)
        return task

    async def _deliver_beside(self, server: "Beside") -> None:
        """Deliver a cancel that can hit no other client, however late it comes."""
        with contextlib.suppress(TimeoutError, OSError, ConnectFailedError):
            async with asyncio.timeout(self.timeout_s or None), self._places:
                conversation = await self._dial(server)
                try:
                    conversation.transport.write(cancel_request(server.key))
                    await conversation.until_lost()
                finally:
                    conversation.transport.abort()

    async def _dial(self, server: "ServerSession | Beside") -> Conversation:
        """Reach the Postgres of a connection, encrypted if that is."""
        conversation = await dial(*server.peer)
        if isinstance(server.transport, TlsConnection) and self.tls is not None:
            try:
                await encrypt(conversation, server.peer.host, self.tls)
            except BaseException:
                conversation.transport.abort()
                raise
        return conversation

    @property
    def under_way(self) -> dict[ServerSession, bool]:
        """The servers on which something is being cancelled, and whether Postgres has been sent that yet."""
        return {server: server in self._sent for server in self._under_way}

    def cancel_server(self, server: ServerSession) -> asyncio.Task[None]:
        """Cancel what runs on `server`; what has been sent already counts for whoever asks again."""
        task = self._under_way.get(server)
        if task is None:
            # At once, and not when the task gets to run: an answer that comes in between would release the server.
            server.cancel_sent()
            task = self._under_way[server] = asyncio.create_task(self._cancel(server))
        return task

    async def _cancel(self, server: ServerSession) -> None:
        errand = _Errand()
        try:
            async with asyncio.timeout(self.timeout_s or None), self._places:
                await self._deliver(server, errand)
        except TimeoutError:
            self._on_failure(server, f"not confirmed within {self.timeout_s:g} s")
        except (OSError, ConnectFailedError) as error:
            self._on_failure(server, str(error))
        finally:
            del self._under_way[server]
            self._sent.discard(server)
            if errand.sent and not errand.confirmed:
                server.retire(Reason.CANCEL_UNCONFIRMED)  # the signal may still come
            server.cancel_settled()

    async def _deliver(self, server: ServerSession, errand: "_Errand") -> None:
        # Each time there was something to wait for, the query may have ended: then there is nothing to cancel.
        if server.exchange.quiet or server.transport.is_closing():
            return
        conversation = await self._dial(server)
        try:
            if not server.exchange.quiet:
                errand.sent = True
                self._sent.add(server)
                conversation.transport.write(cancel_request(server.key))
                await conversation.until_lost()
                errand.confirmed = True
        finally:
            conversation.transport.abort()

    async def close(self) -> None:
        """Let what is under way arrive, for a moment; give up the rest."""
        tasks = [*self._under_way.values(), *self._under_way_beside]
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._peers is not None:
            await self._peers.close()


def _runs_for_its_client(server: ServerSession) -> bool:
    # What gives the server its client's settings is not its client's to cancel: it comes too early, as it may.
    return server.client is not None and not server.exchange.quiet and not server.exchange.hidden


class _Errand:
    """How far a cancel has come."""

    sent = False
    confirmed = False
    """The server has closed the connection that brought it."""
