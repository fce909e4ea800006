"""Settings of Orcinus: declared once in `settings`, handed to the engine as the frozen `EngineConfig`.

This package knows neither torch nor HTTP. It is imported by everything and imports nothing of ours.
"""
