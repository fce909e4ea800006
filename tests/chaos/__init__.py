"""A real server under a seeded mix of clients and faults, and the accounts that must come out even at the end.

`python -m tests.chaos --minutes 10 --seed 1` runs it. Every answer is compared with its twin, which a server gave that
nobody disturbed; every choice, every token and every block is accounted for.
"""
