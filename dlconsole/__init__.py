"""dlconsole: an operations console and headless workers for fleets of dataset downloaders."""

__version__ = "0.1.0"
