"""Real standalone clusters."""
