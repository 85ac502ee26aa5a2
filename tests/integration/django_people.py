"""Eight Django applications, each with a schema of its own, as databases of one process.

    python -m tests.integration.django_people HOST PORT "in turns"|"at once"

Ends with status 0 if each of them has found its own, and only its own.
"""

import datetime as dt
import sys
from decimal import Decimal
from typing import Final, cast

import django
from django.conf import settings
from django.db import IntegrityError, connections, models, transaction
from django.db.models.functions import TruncDay

from tests.integration.people import DATABASE, PEOPLE, SESSION, Order, Person, Program, play

ROUNDS: Final = 3
NOON: Final = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


def database(person: Person, host: str, port: str) -> dict[str, object]:
    """Half of them keep their connections, half of them bind parameters on the server; all else is Django's default."""
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": DATABASE,
        "USER": "postgres",
        "HOST": host,
        "PORT": port,
        "TIME_ZONE": person.timezone,
        "CONN_MAX_AGE": None if person.number % 2 else 0,
        "CONN_HEALTH_CHECKS": person.number % 2 == 1,
        "OPTIONS": {
            "options": f"-c search_path={person.schema} -c app.tenant={person.tenant.replace(' ', chr(92) + ' ')}",
            "application_name": person.application,
            "server_side_binding": person.number % 4 < 2,
        },
    }


def configure(host: str, port: str) -> None:
    databases = {str(person.number): database(person, host, port) for person in PEOPLE}
    settings.configure(DATABASES={"default": {}, **databases}, USE_TZ=True, TIME_ZONE="UTC")
    django.setup()


configure(*sys.argv[1:3])


class Author(models.Model):  # type: ignore[misc]
    name = models.TextField(unique=True)

    class Meta:
        app_label = "shop"


class Book(models.Model):  # type: ignore[misc]
    author = models.ForeignKey(Author, models.CASCADE)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    printed = models.DateTimeField()
    notes = models.JSONField(default=dict)

    class Meta:
        app_label = "shop"


def program(person: Person) -> Program:
    alias = str(person.number)
    authors, books = Author.objects.using(alias), Book.objects.using(alias)
    with connections[alias].schema_editor() as editor:
        editor.create_model(Author)
        editor.create_model(Book)
    for turn in range(ROUNDS):
        yield
        author = authors.create(name=f"author {turn} of {person.number}")
        yield
        book = books.create(author=author, price=Decimal("9.90"), printed=NOON, notes={"of": person.number})
        yield
        book.refresh_from_db()
        assert (book.notes, book.printed, book.price) == ({"of": person.number}, NOON, Decimal("9.90"))
        yield
        with transaction.atomic(alias):
            locked = books.select_for_update().get(pk=book.pk)
            try:
                with transaction.atomic(alias):
                    authors.create(name=author.name)
            except IntegrityError:
                locked.price += 1
            locked.save()
        yield
        assert books.filter(price="10.90").count() == 1
        yield
        books.bulk_create(Book(author=author, price=i, printed=NOON) for i in range(300))
        yield
        # A cursor on the server: WITH HOLD if outside a transaction.
        assert {book.author_id for book in books.filter(author=author).iterator(chunk_size=100)} == {author.pk}
        yield
        with transaction.atomic(alias):
            assert sum(1 for _ in books.select_related("author").iterator(chunk_size=100)) == 301
        yield
        days = books.annotate(day=TruncDay("printed")).values_list("day", flat=True).distinct()
        assert [day.utcoffset() for day in days] == [dt.timedelta(0)]
        yield
        books.filter(price__lt=1000, author=author).delete()
        yield
        with connections[alias].cursor() as cursor:
            cursor.execute(SESSION)
            assert [*cursor.fetchone()] == person.session
        yield
        # As at the end of each request: closes it, or finds out whether it is still alive.
        connections[alias].close_if_unusable_or_obsolete()
    with connections[alias].schema_editor() as editor:
        editor.delete_model(Book)
        editor.delete_model(Author)
    connections[alias].close()


if __name__ == "__main__":
    play(cast("Order", sys.argv[3]), program)
