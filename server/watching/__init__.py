"""What somebody who looks at the server sees: its slots, queue, cache and pace, as one small event after another.

`board`: what is in the slots of all engines; `watch`: who watches, and what an event says; `totals`: what is counted in
one; `fields`: what is in one.
"""
