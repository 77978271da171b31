"""The broker: one WebSocket connection, any number of worker processes, in rooms.

Each room has one subject and says in its `__init__` what may enter. Imports go down only: cli, then
exchange, then manager and worker, then connection and config, then `ringcast.shm`. A worker loads
no WebSocket client. Programs take the public names from `ringcast` itself.
"""
