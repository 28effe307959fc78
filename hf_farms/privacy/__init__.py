"""Nothing that belongs to the user leaves the machine.

masking.py      secrets out of every message
publishing.py   paths and names as they may be published
"""
