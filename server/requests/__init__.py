"""What clients may send, checked, and what the engine is asked for in its place.

`bodies` has what the bodies of several APIs share, `schemas` the types of their fields, `validation` how pydantic's
errors are worded, `parameters` what becomes of names that are no fields. `caller` reads who asks from the headers.
`prompts`, `sampling` and `structured` turn checked parameters into token ids, sampling parameters and grammars.
"""
