"""SHOW LISTS, STATE, MEM, DNS_HOSTS, DNS_ZONES and VERSION: the process as a whole."""

import sys
from collections.abc import Iterator
from typing import Final

from pooler.admin.office import Office
from pooler.admin.results import Row, columns
from pooler.admin.show.table import Table
from pooler.admin.small_talk import VERSION
from protocol.console import Kind

_TEXT, _INT4, _INT8 = Kind.TEXT, Kind.INT4, Kind.INT8

_LISTS: Final = columns(list=_TEXT, items=_INT4)
_STATE: Final = columns(key=_TEXT, value=_TEXT)
_MEM: Final = columns(name=_TEXT, size=_INT4, used=_INT4, free=_INT4, memtotal=_INT4)
_DNS_HOSTS: Final = columns(hostname=_TEXT, ttl=_INT8, addrs=_TEXT)
_DNS_ZONES: Final = columns(zonename=_TEXT, serial=_INT8, count=_INT4)
_VERSION: Final = columns(version=_TEXT)


def _lists(office: Office) -> Iterator[Row]:
    lobby, pools = office.lobby, list(office.pools)
    servers = sum(len(pool.servers) + pool.opening + pool.aside for pool in pools)
    logins = len(lobby.strangers) + len(lobby.queue) + len(lobby.proving)
    users = {*office.current.access.users, *office.current.directory.users, *(pool.user for pool in pools)}
    clients = len(office.clients) + len(office.passages) + len(office.consoles)
    yield ("databases", len(list(office.databases)) + 1)
    yield ("users", len(users))
    yield ("peers", len(office.current.directory.peers))
    yield ("pools", len(pools) + 1)
    yield ("peer_pools", len(office.current.directory.peers))
    yield ("free_clients", 0)
    yield ("used_clients", clients + logins)
    yield ("login_clients", logins)
    yield ("free_servers", 0)
    yield ("used_servers", servers)
    yield ("dns_names", len(list(office.resolver.known())))
    yield ("dns_zones", len(office.resolver.zones()))
    yield ("dns_queries", office.resolver.questions)
    yield ("dns_pending", 0)


def _state(office: Office) -> Iterator[Row]:
    paused = office.databases.paused
    yield ("active", "no" if paused else "yes")
    yield ("paused", "yes" if paused else "no")
    yield ("suspended", "no")


def _mem(office: Office) -> Iterator[Row]:
    """Yield how many objects of a kind there are, and about how many bytes one takes."""
    pools = list(office.pools)
    clients = list(office.clients.values())
    servers = [server for pool in pools for server in pool.servers]
    kinds = (
        ("user_cache", list(office.current.directory.users.values())),
        ("db_cache", list(office.databases)),
        ("pool_cache", pools),
        ("server_cache", servers),
        ("client_cache", clients),
        ("server_prepared_statement_cache", [statement for server in servers for statement in server.state.statements]),
    )
    for name, objects in kinds:
        size = sys.getsizeof(objects[0]) if objects else 0
        yield (name, size, len(objects), 0, size * len(objects))
    pending = [len(client.pending) for client in clients if client.pending]
    yield ("iobuf_cache", max(pending, default=0), len(pending), 0, sum(pending))
    library = office.library
    yield ("prepared_statement_cache", library.bytes // max(1, library.count), library.count, 0, library.bytes)


def _dns_hosts(office: Office) -> Iterator[Row]:
    for known in office.resolver.known():
        yield (known.name, known.ttl, ",".join(known.addresses))


def _dns_zones(office: Office) -> Iterator[Row]:
    yield from office.resolver.zones()


def _version(_: Office) -> Iterator[Row]:
    yield (VERSION,)


TABLES: Final = {
    "lists": Table("How many there are of everything", _LISTS, _lists),
    "state": Table("Whether all is paused (PAUSE)", _STATE, _state),
    "mem": Table("Memory by kind of object, about, in bytes", _MEM, _mem),
    "dns_hosts": Table("Host names, their addresses, and for how many seconds they are good", _DNS_HOSTS, _dns_hosts),
    "dns_zones": Table("Zones of host names, and their serial numbers (dns_zone_check_period)", _DNS_ZONES, _dns_zones),
    "version": Table("The version of PgBouncer whose console this is, and pgfunnel's", _VERSION, _version),
}
