"""Learning from own pictures instead of the drawn world."""
