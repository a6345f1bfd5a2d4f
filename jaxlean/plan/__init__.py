"""What a run will cost, before it runs: candidates compiled for hardware that is not here, ranked by their price."""
