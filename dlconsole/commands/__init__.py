"""The commands, one module each; nothing is imported before its command is known."""
