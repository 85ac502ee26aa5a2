"""SQLAlchemy and Django as they come: eight applications, each with a schema of its own, on one pool."""

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import DateTime, Engine, ForeignKey, create_engine, event, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

from tests.integration.conftest import Door
from tests.integration.people import DATABASE, SESSION, AsyncProgram, Order, Person, Play, PlayAsync, Program

ROUNDS: Final = 4
NOON: Final = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
REPOSITORY: Final = Path(__file__).parents[2]


class Base(DeclarativeBase):
    """The two tables of a shop; everybody has them in a schema of its own."""


class Sale(Base):
    __tablename__ = "sales"
    id: Mapped[int] = mapped_column(primary_key=True)
    placed: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))
    details: Mapped[dict[str, object]] = mapped_column(JSONB)
    items: Mapped[list["Item"]] = relationship(cascade="all, delete-orphan", order_by="Item.name")


class Item(Base):
    __tablename__ = "items"
    sale_id: Mapped[int] = mapped_column(ForeignKey("sales.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)


def sale_of(person: Person) -> Sale:
    names = ("apple", "pear", f"what {person.number} likes")
    return Sale(placed=NOON, details={"of": person.number}, items=[Item(name=name) for name in names])


def url(door: Door, driver: str) -> str:
    return door.url(DATABASE).replace("postgresql://", f"postgresql+{driver}://")


def tell_tenant(engine: Engine, person: Person) -> None:
    """As applications with many tenants do: once for each connection of the engine's pool."""

    @event.listens_for(engine, "connect")
    def tell(connection: DBAPIConnection, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET app.tenant = $${person.tenant}$$")
        cursor.close()
        connection.commit()


def test_sqlalchemy_with_psycopg(door: Door, everybody: Play) -> None:
    def program(person: Person) -> Program:
        arguments = {"options": person.options, "application_name": person.application}
        engine = create_engine(url(door, "psycopg"), pool_size=1, max_overflow=0, connect_args=arguments)
        tell_tenant(engine, person)
        yield
        Base.metadata.create_all(engine)
        for _ in range(ROUNDS):
            yield
            with Session(engine) as session:
                sale = sale_of(person)
                session.add(sale)
                session.commit()
                yield
                assert sale.details == {"of": person.number}, "asked for anew, in another transaction"
                assert sale.placed == NOON
                session.commit()
                yield
                session.add(Item(sale_id=0, name="of no sale"))
                with pytest.raises(IntegrityError):
                    session.flush()
                session.rollback()
                yield
                with session.begin(), session.begin_nested() as savepoint:
                    session.execute(text("SET LOCAL timezone = 'Asia/Pyongyang'"))
                    sale.details = {"of": "nobody"}
                    session.flush()
                    savepoint.rollback()
            yield
            with Session(engine) as session:
                sales = session.scalars(select(Sale).options(selectinload(Sale.items))).all()
                assert {item.name for sale in sales for item in sale.items} == {
                    item.name for item in sale_of(person).items
                }
                streamed = session.scalars(select(Item.name), execution_options={"yield_per": 2})
                assert len([*streamed]) == len(sales) * 3
            yield
            with engine.connect() as connection:
                assert [*connection.execute(text(SESSION)).one()] == person.session
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                for value in range(3):
                    yield
                    assert connection.scalar(text(person.own_text(":value")), {"value": value}) == person.own_answer(
                        value
                    )
        Base.metadata.drop_all(engine)
        engine.dispose()

    everybody(program)


async def test_sqlalchemy_with_asyncpg(door: Door, everybody_async: PlayAsync) -> None:
    async def program(person: Person) -> AsyncProgram:
        settings = {"application_name": person.application, "timezone": person.timezone, "search_path": person.schema}
        arguments = {"server_settings": settings}
        engine = create_async_engine(url(door, "asyncpg"), pool_size=1, max_overflow=0, connect_args=arguments)
        tell_tenant(engine.sync_engine, person)
        yield
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        for turn in range(ROUNDS):
            yield
            async with AsyncSession(engine, expire_on_commit=False) as session:
                sale = sale_of(person)
                session.add(sale)
                await session.commit()
                yield
                await session.refresh(sale)
                assert (sale.details, sale.placed) == ({"of": person.number}, NOON)
                await session.commit()
                yield
                session.add(Item(sale_id=0, name="of no sale"))
                with pytest.raises(IntegrityError):
                    await session.flush()
                await session.rollback()
            yield
            async with AsyncSession(engine) as session:
                assert await session.scalar(select(func.count()).select_from(Item)) == 3 * (turn + 1)
                streamed = await session.stream_scalars(select(Item.name), execution_options={"yield_per": 2})
                assert len([name async for name in streamed]) == 3 * (turn + 1)
            yield
            async with engine.connect() as connection:
                assert [*(await connection.execute(text(SESSION))).one()] == person.session
            serializable = engine.execution_options(isolation_level="SERIALIZABLE")
            async with serializable.connect() as connection:
                yield
                assert await connection.scalar(text("SHOW transaction_isolation")) == "serializable"
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
        await engine.dispose()

    await everybody_async(program)


def test_django(door: Door, order: Order, stranger: None) -> None:
    """Django's settings are those of a process, so it gets one."""
    command = [sys.executable, "-W", "error", "-m", "tests.integration.django_people", door.host, str(door.port), order]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
