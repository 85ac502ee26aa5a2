"""The order-logistics API that the demo's functions serve: its database, and five requests on one connection.

Schema and data are in logistics.sql. Who calls the requests, how often and how long they take is storm's affair.
"""

from __future__ import annotations

from importlib import resources
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    import asyncpg

    from pooler.demo.postgres import EmbeddedPostgres

DATABASE: Final = "logistics"
USER: Final = "shop"
PASSWORD: Final = "shop"
# A thousand functions would hash their password on a thousand machines. Here they share one core with everything
# else, and the default 4096 rounds would cost more than all their requests.
SCRAM_ITERATIONS: Final = 64

_SALES: Final = 200
_PRODUCTS: Final = 8
_WAREHOUSES: Final = 4

_CREATE_ROLE: Final = f"""
-- Postgres 15 and older have no such setting.
select set_config(name, '{SCRAM_ITERATIONS}', false) from pg_settings where name = 'scram_iterations';
create role {USER} login password '{PASSWORD}';
create database {DATABASE} owner {USER};
"""
_EMPTY: Final = """
truncate fulfillments, fulfillment_items restart identity;
update inventory set quantity = 1000000;
vacuum analyze;
"""
_LIST_SALES: Final = """
select sales.id, users.name, placed, quantity from sales join users on users.id = user_id
order by placed desc limit 20
"""
_LIST_INVENTORY: Final = """
select sku, warehouses.name, quantity
from inventory join products on products.id = product_id join warehouses on warehouses.id = warehouse_id
order by sku, warehouses.name
"""
_INSERT_FULFILLMENT: Final = "insert into fulfillments (sale_id, warehouse_id) values ($1, $2) returning id"
_INSERT_ITEMS: Final = """
insert into fulfillment_items (fulfillment_id, product_id, quantity) select $1, unnest($2::int[]), $3
"""
_TAKE_STOCK: Final = """
update inventory set quantity = quantity - $1 where product_id = $2 and warehouse_id = $3
"""
_FULFILLMENT_STATUS: Final = """
select fulfillments.id, status, warehouses.name as warehouse,
       json_agg(json_build_object('sku', sku, 'quantity', quantity) order by sku) as items
from fulfillments
join warehouses on warehouses.id = warehouse_id
join fulfillment_items on fulfillment_id = fulfillments.id
join products on products.id = product_id
where fulfillments.id = $1
group by fulfillments.id, warehouses.name
"""
_LIST_USERS: Final = "select id, name, email from users order by name"


class WrongAnswerError(Exception):
    """The database answered, but not what was asked."""


def url(port: int) -> str:
    """Return the connection string for whoever listens on a port of this machine."""
    return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}"


def create(postgres: EmbeddedPostgres) -> None:
    """Create the role, the database, its tables and their rows."""
    postgres.psql(_CREATE_ROLE)
    schema = resources.files("pooler.demo").joinpath("logistics.sql").read_text()
    postgres.psql(f"set role {USER};\n{schema}", DATABASE)


def reset(postgres: EmbeddedPostgres) -> None:
    """Undo what storms left behind, so that the next one finds what the first one found."""
    postgres.psql(_EMPTY, DATABASE)


class OrderApi:
    """The five requests, each of which waits for one answer; `random` decides what they ask for."""

    REQUESTS: Final = 5

    def __init__(self, connection: asyncpg.Connection, random: Random) -> None:
        self._connection = connection
        self._random = random
        self._fulfillment = 0

    def requests(self) -> list[Callable[[], Awaitable[None]]]:
        """Return the requests in an order of their own, but for a status there must be a fulfillment."""
        steps = [
            (self.list_sales,),
            (self.list_inventory,),
            (self.create_fulfillment, self.fulfillment_status),
            (self.list_users,),
        ]
        self._random.shuffle(steps)
        return list(chain.from_iterable(steps))

    async def list_sales(self) -> None:
        """List the latest sales."""
        _expect(len(await self._connection.fetch(_LIST_SALES)), 20)

    async def list_inventory(self) -> None:
        """List what lies where."""
        _expect(len(await self._connection.fetch(_LIST_INVENTORY)), _PRODUCTS * _WAREHOUSES)

    async def create_fulfillment(self) -> None:
        """Send two products of a sale on their way, in one transaction that takes them from stock."""
        connection, random = self._connection, self._random
        sale, warehouse = random.randint(1, _SALES), random.randint(1, _WAREHOUSES)
        # In order, so that two transactions which take the same products never wait for each other.
        products = sorted(random.sample(range(1, _PRODUCTS + 1), 2))
        quantity = random.randint(1, 5)
        async with connection.transaction():
            self._fulfillment = await connection.fetchval(_INSERT_FULFILLMENT, sale, warehouse)
            await connection.execute(_INSERT_ITEMS, self._fulfillment, products, quantity)
            for product in products:
                _expect(await connection.execute(_TAKE_STOCK, quantity, product, warehouse), "UPDATE 1")

    async def fulfillment_status(self) -> None:
        """Look up the fulfillment just created."""
        row = await self._connection.fetchrow(_FULFILLMENT_STATUS, self._fulfillment)
        _expect(None if row is None else row["id"], self._fulfillment)

    async def list_users(self) -> None:
        """List everybody."""
        _expect(len(await self._connection.fetch(_LIST_USERS)), 8)


def _expect(answer: object, expected: object) -> None:
    if answer != expected:
        raise WrongAnswerError(f"expected {expected!r}, got {answer!r}")
