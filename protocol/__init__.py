"""The PostgreSQL wire protocol, sans-IO: bytes in, facts out. No sockets, no event loop, nothing else of ours."""
