"""Bytes and connections, from the outside in.

`connection` and `parser` bound what uvicorn leaves open. Then come three layers: `request_layer` (ids, the log,
metrics), `auth` (keys) and `room_layer` (whether there is room at all). `routes` answers an operation of the table:
`body` and `json_body` read what is asked, `answers` sends what is said, whole or as events.
"""
