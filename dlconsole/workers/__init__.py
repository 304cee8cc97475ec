"""What runs without a terminal."""
