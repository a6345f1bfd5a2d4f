"""How XLA runs a function: devices, precision, recomputation, compilation."""
