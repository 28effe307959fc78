"""Privacy: no secret, private path or user name leaves the machine.

masking.py      remove secrets from messages
publishing.py   shorten paths and names before they are published
"""
