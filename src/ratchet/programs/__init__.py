"""The outside world in core's words; the only room that knows DSPy."""
