"""The upstream URL: what it gives, what it refuses and what of it may be shown."""

from pathlib import PurePosixPath
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from config.upstream import Upstream, mask


def test_a_full_url_gives_every_part() -> None:
    assert Upstream.parse("postgresql://app:se:cret@db.internal:5433/orders") == Upstream(
        host="db.internal", port=5433, user="app", password=SecretStr("se:cret"), dbname="orders"
    )


def test_what_a_url_leaves_out_is_unset_and_the_port_is_postgres_own() -> None:
    assert Upstream.parse("postgres://db") == Upstream(host="db", port=5432, user=None, password=None, dbname=None)
    assert Upstream.parse("postgresql://app@db/") == Upstream(host="db", user="app")
    assert Upstream.parse("postgresql://app:@db:") == Upstream(host="db", user="app")


def test_every_part_may_be_percent_encoded() -> None:
    parsed = Upstream.parse("postgresql://a%40b:p%2F%3F%23%40%25%20%C3%A9@db/a%2Fb")
    assert parsed == Upstream(host="db", user="a@b", password=SecretStr("p/?#@% é"), dbname="a/b")


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgresql://[::1]/db", "::1", 5432),
        ("postgresql://[2001:db8::7]:6000/db", "2001:db8::7", 6000),
        ("postgresql://app@[fe80::1%25eth0]:6000/db", "fe80::1%eth0", 6000),
    ],
)
def test_an_ipv6_address_stands_in_brackets(url: str, host: str, port: int) -> None:
    parsed = Upstream.parse(url)
    assert (parsed.host, parsed.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///orders?host=/run/postgresql&port=5433",
        "postgresql://:5433/orders?host=%2Frun%2Fpostgresql",
        "postgresql://%2Frun%2Fpostgresql:5433/orders",
    ],
)
def test_a_directory_as_host_is_a_unix_socket(url: str) -> None:
    parsed = Upstream.parse(url)
    assert parsed == Upstream(host="/run/postgresql", port=5433, dbname="orders")
    assert parsed.socket_path == PurePosixPath("/run/postgresql/.s.PGSQL.5433")
    assert Upstream.parse("postgresql://db/orders").socket_path is None


@pytest.mark.parametrize(
    ("url", "port", "hosts"),
    [
        ("postgresql://a,b/db", 5432, ("a", "b")),
        ("postgresql://app:x@a:6000,b:6000,c:6001/db", 6000, ("a", "b", "c:6001")),
        ("postgresql://a:6000,b/db", 6000, ("a", "b:5432")),
        ("postgresql://[::1]:6000,[::2]:6000,[::3]/db", 6000, ("::1", "::2", "[::3]:5432")),
        ("postgresql:///db?host=a,b&port=6000", 6000, ("a", "b")),
        ("postgresql:///db?host=a,b&port=6000,6001", 6000, ("a", "b:6001")),
        ("postgresql://x:1/db?host=/run/a,/run/b", 1, ("/run/a", "/run/b")),
    ],
)
def test_a_url_may_name_several_hosts_as_in_libpq(url: str, port: int, hosts: tuple[str, ...]) -> None:
    parsed = Upstream.parse(url)
    assert (parsed.port, parsed.hosts) == (port, hosts)
    assert Upstream.parse(str(parsed)).hosts == hosts


@pytest.mark.parametrize(("given", "meant"), [("disable", "disable"), ("random", "round-robin")])
def test_how_hosts_are_chosen_is_said_in_libpqs_words(given: str, meant: str) -> None:
    assert Upstream.parse("postgresql://a,b").load_balance_hosts == "disable"
    assert Upstream.parse("postgresql://a,b").target_session_attrs == "any"
    parsed = Upstream.parse(f"postgresql://a,b/db?load_balance_hosts={given}&target_session_attrs=read-write")
    assert (parsed.load_balance_hosts, parsed.target_session_attrs) == (meant, "read-write")


def test_a_newline_after_the_url_is_left_out() -> None:
    """As in a Kubernetes secret that was made with echo."""
    assert Upstream.parse("postgresql://app:secret@db/orders\n").dbname == "orders"


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_an_sslmode_is_a_setting(mode: str) -> None:
    assert Upstream.parse(f"postgresql://db?sslmode={mode}").tls == (("server_tls_sslmode", mode),)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("sslnegotiation=direct&sslmode=require", {"sslnegotiation": "direct", "sslmode": "require"}),
        ("sslcert=/tls/client.crt&sslkey=/tls/a%20key", {"cert_file": "/tls/client.crt", "key_file": "/tls/a key"}),
        ("sslmode=verify-full&sslrootcert=/tls/ca", {"sslmode": "verify-full", "ca_file": "/tls/ca"}),
        # As in libpq: https://www.postgresql.org/docs/current/libpq-ssl.html
        ("sslmode=require&sslrootcert=/tls/ca", {"sslmode": "verify-ca", "ca_file": "/tls/ca"}),
        ("sslrootcert=system", {"sslmode": "verify-full", "ca_file": ""}),
    ],
)
def test_options_for_tls_mean_what_they_mean_to_libpq(options: str, settings: dict[str, str]) -> None:
    named = {f"server_tls_{name}": value for name, value in settings.items()}
    assert dict(Upstream.parse(f"postgresql://db?{options}").tls) == named


def test_channel_binding_may_be_required() -> None:
    assert Upstream.parse("postgresql://db").channel_binding == "prefer"
    assert Upstream.parse("postgresql://db?sslmode=require&channel_binding=require").channel_binding == "require"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "does not begin with postgresql://"),
        ("db:5432", "does not begin with postgresql://"),
        ("host=db password=secret", "does not begin with postgresql://"),
        ("postgresql+asyncpg://db", "does not begin with postgresql://"),
        ("postgresql://", "names no host"),
        ("postgresql://app:secret@/orders", "names no host"),
        ("postgresql://a,,b/orders", "names no host"),
        ("postgresql://a:1,b:2,c/orders?port=3,4", "has 2 ports for 3 hosts"),
        ("postgresql://a:1,b:x/orders", "a port that is not a number"),
        ("postgresql:///orders?host=/a,/b&port=1,2", "a Unix socket with another port than the first host's"),
        ("postgresql://a,b?target_session_attrs=master", "as its target_session_attrs that is not one of any, read-w"),
        ("postgresql://a,b?load_balance_hosts=yes", "as its load_balance_hosts that is not one of disable, random"),
        ("postgresql://db:port/orders", "port that is not a number from 1 to 65535"),
        ("postgresql://db:0/orders", "port that is not a number from 1 to 65535"),
        ("postgresql://db:65536/orders", "port that is not a number from 1 to 65535"),
        ("postgresql://db:\u0665/orders", "port that is not a number from 1 to 65535"),
        ("postgresql://app:secret@db /orders", "neither a name, nor an address, nor a directory"),
        ("postgresql:///orders?host=run/postgresql", "neither a name, nor an address, nor a directory"),
        ("postgresql://db..example/orders", "neither a name, nor an address, nor a directory"),
        (f"postgresql://{'d' * 64}.example/orders", "neither a name, nor an address, nor a directory"),
        ("postgresql://::1/orders", "without brackets"),
        ("postgresql://[::1/orders", "not closed by ]"),
        ("postgresql://[::1]5432/orders", "not closed by ]"),
        ("postgresql://[db]/orders", "other than an IPv6 address"),
        ("postgresql://app:se/cret@db/orders", "percent-encoded"),
        ("postgresql://app:se#cret@db/orders", "percent-encoded"),
        ("postgresql://app:12?34@db/orders", "percent-encoded"),
        ("postgresql://app:12/34@db/orders", "percent-encoded"),
        ("postgresql://app:50%@db/orders", "write a plain % as %25"),
        ("postgresql://app:%ff@db/orders", "not UTF-8"),
        ("postgresql://app:\udcff@db/orders", "not UTF-8"),
        ("postgresql://app:a%00b@db/orders", "zero byte"),
        ("postgresql://db/orders/2024", "/ in its database name"),
        ("postgresql://db?sslmode=on", "as its sslmode that is not one of disable, allow, prefer"),
        ("postgresql://db?sslmode", "as its sslmode that is not one of disable, allow, prefer"),
        (
            "postgresql://db?application_name=api",
            "the option application_name, which is not taken: it can't be set here",
        ),
        ("postgresql://db?connect_timeout=5", "use the setting server_connect_timeout"),
        ("postgresql://db?channel_binding=1", "something as its channel_binding that is not one of disable, prefer"),
        ("postgresql://db?sslrootcert=system&sslmode=require", "sslrootcert=system, which takes sslmode=verify-full"),
        ("postgresql://db?ssl_min_protocol_version=TLSv1.3", "use the setting server_tls_protocols"),
        ("postgresql://db?whatever", "not in the form name=value"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        Upstream.parse(url)
    for part in ("secret", "cret", "34"):
        assert part not in str(raised.value)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,6})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"(/[a-z]{1,8}){1,3}", fullmatch=True),
)


@given(user=names, password=names, host=hosts, port=st.integers(1, 65535), dbname=names)
def test_whatever_is_written_into_a_url_is_read_from_it(
    user: str, password: str, host: str, port: int, dbname: str
) -> None:
    location = f"[{host}]" if ":" in host else quote(host, safe="")
    user_part, password_part, dbname_part = (quote(part, safe="") for part in (user, password, dbname))
    parsed = Upstream.parse(f"postgresql://{user_part}:{password_part}@{location}:{port}/{dbname_part}")
    assert parsed == Upstream(host, port, user, SecretStr(password), dbname)
    assert Upstream.parse(str(parsed)) == Upstream(host, port, user, SecretStr("***"), dbname)


def url_like() -> st.SearchStrategy[str]:
    """Texts made of the pieces of URLs in any order, so that the parser is taken far."""
    pieces = ["postgresql://", ":", "@", "/", "?", "#", "[", "]", "%", "%41", "%ff", "=", "&", "host=", "::1", "5432"]
    return st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=3))).map("".join)


@given(url_like().map("postgresql://".__add__) | st.text())
@example("postgresql://[::ffff:1.2.3]")
def test_any_text_is_parsed_or_refused_with_a_message(text: str) -> None:
    raised: Exception | None = None
    try:
        Upstream.parse(text)
    except ValueError as error:
        raised = error
    assert type(raised) in (type(None), ValueError)  # not a subclass, whose text would quote what it is about
    mask(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "postgresql://app:secret@db:5432/orders?sslmode=require",
            "postgresql://app:***@db:5432/orders?sslmode=require",
        ),
        ("postgresql://app@db/orders", "postgresql://app@db/orders"),
        ("postgresql://db/orders?password=secret&sslmode=on", "postgresql://db/orders?password=***&sslmode=on"),
        ("postgresql://db:secret", "postgresql://db:***"),
        ("postgresql://a:5432,db:secret,b:5432/db", "postgresql://a:5432,db:***"),
        ("postgresql://a:1,b:2/db?load_balance_hosts=x", "postgresql://a:1,b:2/db?load_balance_hosts=x"),
        ("postgresql://app:se/secret", "postgresql://app:***"),
        ("postgresql://app:se/secret@db:5432/orders", "postgresql://app:***@db:5432/orders"),
        ("postgresql://se/cret@db:5432/orders", "postgresql://***@db:5432/orders"),
        ("postgresql://app:a@secret@db", "postgresql://app:***@db"),
        ("postgresql://[::1]:5432/orders", "postgresql://[::1]:5432/orders"),
        ("postgresql://db/orders#secret", "postgresql://db/orders"),
        ("postgresql://db?secret", "postgresql://db?***"),
        ("app:secret@db", "***"),
        ("host=db password=secret", "***"),
        ("sec ret://db", "***"),
    ],
)
def test_messages_show_a_url_without_its_password(text: str, shown: str) -> None:
    assert mask(text) == shown


secrets = st.from_regex(r"[A-Z]{8,12}", fullmatch=True)  # in capitals, so that no other part can look like one
urls_with_secret = st.sampled_from(
    [
        "postgresql://app:{}@db:5432/orders",
        "postgresql://app:{}@db:54321x/orders",
        "postgresql://app:{}@[::1/orders",
        "postgresql://app:{}@/orders",
        "postgresql://app:x/{}@db/orders",
        "postgresql://app:x?{}@db/orders",
        "postgresql://app:x?a={}@db/orders",
        "postgresql://app:x#{}@db/orders",
        "postgresql://app:x@{}@db/orders",
        "postgresql://app:x%{}@db/orders",
        "postgresql://app:{}%zz@db/orders",
        "postgresql://app:{}",
        "postgresql://app:{},db:5432/orders",
        "postgresql://app:x/{}",
        "postgresql://db/orders?password={}",
        "postgresql://db/orders?passfile={}",
        "postgresql:/app:{}@db/orders",
        "postgresql//app:{}@db/orders",
        "mysql://app:{}@db/orders",
        "app:{}@db",
        "host=db password={}",
        "{}",
    ]
)


@given(secret=secrets, url=urls_with_secret)
def test_no_mistake_in_a_url_shows_its_password(secret: str, url: str) -> None:
    text = url.format(secret)
    assert secret not in mask(text)
    try:
        parsed = Upstream.parse(text)
        shown = f"{parsed} {parsed!r}"
    except ValueError as error:
        shown = str(error)
    assert secret not in shown
