"""The process that serves: uvicorn and how it ends.

`server`: listening, signals, the drain, watching the engine; `summary`: what is printed at the start; `logs`;
`load_log`: a line for every ten seconds with work; `heap`: memory that glibc would keep; `orphans`: the children that
fall to a process 1.
"""
