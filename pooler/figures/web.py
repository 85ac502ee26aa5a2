"""The pages for machines: /metrics, /healthz, /readyz. In the pooler's loop, never on the way of a query."""

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from config.settings import Settings
from pooler.figures.metrics import Figures, Page

LATELY_S: Final = 30.0
"""An answer of the upstream counts for this long."""
PROBE_S: Final = 2.0
"""How long a probe may take: less than the probes of orchestrators usually allow us."""


class Web:
    """Serves the pages on metrics_addr and metrics_port."""

    def __init__(self, figures: Figures, accepting: Callable[[], bool], settings: Settings) -> None:
        self._pools = figures.pools
        self._now = figures.now
        self._accepting = accepting
        self._settings = settings
        self._page = Page(figures)
        self._transactions = 0
        application = web.Application()
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        self._probe: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises OSError."""
        await self._runner.setup()
        settings = self._settings
        # A process that takes over listens before the old one has ended.
        site = web.TCPSite(
            self._runner,
            settings.metrics_addr,
            settings.metrics_port,
            shutdown_timeout=1.0,
            reuse_port=settings.so_reuseport,
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop."""
        if self._probe is not None:
            self._probe.cancel()
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._page.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if not self._accepting():
            return web.Response(status=503, text="not accepting: shutting down\n")
        upstream = self._pools.openings.upstream
        now = self._now()
        transactions = sum(pool.stats.totals.xact_count for pool in self._pools)
        if transactions != self._transactions and upstream.failing_since is None:
            self._transactions = transactions
            upstream.answered(now)
        if upstream.answered_at is None or now - upstream.answered_at > LATELY_S:
            await self._ask_upstream()
            now = self._now()
        if upstream.failing_since is None and upstream.answered_at is not None:
            return web.Response(text=f"accepting; the upstream answered {now - upstream.answered_at:.0f} s ago\n")
        waited = now - (upstream.failing_since or now)
        text = f"accepting; clients are queued, the upstream is waited for since {waited:.0f} s: {upstream.failure}\n"
        # Postgres speaks in its own encoding until somebody has logged in.
        return web.Response(text=text.encode("utf-8", "backslashreplace").decode())

    async def _ask_upstream(self) -> None:
        """Log in there like any client, once for all who ask meanwhile."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._knock())
        await asyncio.shield(self._probe)

    async def _knock(self) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                await self._pools.knock()
        except TimeoutError:
            self._pools.openings.upstream.failed(self._now(), f"no answer within {PROBE_S:g} s")
