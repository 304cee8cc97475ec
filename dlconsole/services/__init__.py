"""Everything that talks to Redis, to processes or to files on someone's behalf."""
