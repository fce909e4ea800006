"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens.

`body`: the parameters; `input`: from blocks to a chat; `answer`: from what is generated to blocks and their events.
"""
