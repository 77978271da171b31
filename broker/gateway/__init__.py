"""The local service: the ring's stream over Unix sockets, TCP and POSIX message queues, for
programs that can't map the ring.

What enters here serves local clients: who may come in, how a client says what it wants, and how
messages go from the ring to sockets and queues. The gateway is a worker like any other: it reads
the ring, and sends through the uplink. How a feed reads from a gateway is the room `worker`'s.
"""
