"""The pooler itself: sessions, pools, login, cancellation, timeouts and everything around them, on asyncio."""

__version__ = "0.1.0"
