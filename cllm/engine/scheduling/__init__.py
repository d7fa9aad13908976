"""The engine thread: what waits, what runs, what one step computes."""
