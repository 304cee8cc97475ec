"""The fetch engine, and the guard over the addresses it may connect to."""
