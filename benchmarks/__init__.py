"""What ringcast costs, compared with other ways of moving messages between processes.

Each scenario is a module with a function `measure`. They share `processes` and `programs` (what a
run starts), `flows`, `payloads` and `websocket` (what goes through it, and how it is checked), and
`figures`, `comparison` and `report` (what comes out). `transports` holds what is compared. Nothing
else in ringcast imports this package, except for the command `ringcast bench`.
"""
