"""What faults do to a run: processes that are killed at every file event, and what a repeated command makes of it."""
