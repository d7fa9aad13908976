"""The engine thread: which requests wait, which run, what one step computes."""
