"""The one WebSocket connection: opening it, its protocol, and receiving into the ring.

What knows of sockets, TLS, frames and closing handshakes lives here, and nothing that knows of
workers. The manager drives it.
"""
