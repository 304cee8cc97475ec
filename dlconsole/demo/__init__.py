"""The simulated web and the demo that runs on it."""
