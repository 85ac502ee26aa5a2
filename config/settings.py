"""Every setting of pgfunnel: its name, default, meaning and unit, PgBouncer's wherever it has one.

What the settings do is the pooler's affair; where their values come from is config.load's.
"""

from typing import Final

from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.authentication import Authentication
from config.fields import Boolean, KeepaliveCount, KeepaliveSeconds, Milliseconds, PacketSize
from config.pools import Pools, Sessions
from config.process import Listening, Process
from config.reporting import Console, Logging, Metrics
from config.timeouts import Names, Timeouts
from config.tls import ClientTls, ServerTls


class Network(BaseModel):
    """Sockets and messages."""

    max_packet_size: PacketSize = Field(
        default=2147483647,
        description="Longest message taken from a client or from Postgres. Up to 10000 bytes that arrive at once are "
        "taken anyway.",
    )
    tcp_keepalive: Boolean = Field(default=True, description="Probe silent TCP connections for dead peers.")
    tcp_keepcnt: KeepaliveCount = Field(
        default=0, description="Unanswered probes after which a peer is dead; 0 for the system's number."
    )
    tcp_keepidle: KeepaliveSeconds = Field(
        default=0, description="Silence after which probes begin; 0 for the system's time."
    )
    tcp_keepintvl: KeepaliveSeconds = Field(default=0, description="Time between two probes; 0 for the system's time.")
    tcp_user_timeout: Milliseconds = Field(
        default=0,
        description="How long sent data may go unacknowledged before the connection is given up; 0 for the "
        "system's time.",
    )


GROUPS: tuple[type[BaseModel], ...] = (
    Process,
    Listening,
    Pools,
    Sessions,
    Authentication,
    ClientTls,
    ServerTls,
    Timeouts,
    Names,
    Network,
    Console,
    Metrics,
    Logging,
)


class Settings(
    Process,
    Listening,
    Pools,
    Sessions,
    Authentication,
    ClientTls,
    ServerTls,
    Timeouts,
    Names,
    Network,
    Console,
    Metrics,
    Logging,
    BaseSettings,
):
    """All settings, validated and frozen. One made by hand has its arguments and the defaults, nothing else."""

    model_config = SettingsConfigDict(
        env_prefix="PGFUNNEL_", frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the sources to config.load.

        pydantic-settings' own stop at the first value they can't decode, pass over unknown variables, and forget
        which source a value came from; our messages need all three.
        """
        return (init_settings,)


RESTART: Final = frozenset(
    (
        "listen_addr",
        "listen_backlog",
        "listen_port",
        "metrics_addr",
        "metrics_port",
        "pidfile",
        "so_reuseport",
        "unix_socket_dir",
        "unix_socket_group",
        "unix_socket_mode",
        "user",
    )
)
"""The settings that take effect at a start only."""
