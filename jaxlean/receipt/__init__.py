"""What each cut of a run saved against the run without it."""
