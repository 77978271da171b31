"""Topics: what a message is about, and how an exchange is asked for it.

A venue (`venue`) is an exchange as data: a TOML file that says how its topics are named, asked for,
acknowledged and found in messages. Nothing here connects, sends or waits.
"""
