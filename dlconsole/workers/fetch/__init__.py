"""Fetching: the engine, the guard over the addresses it may connect to, and what URLs it takes."""
