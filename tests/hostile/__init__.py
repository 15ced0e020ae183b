"""Hostile requests: `make hostile` sends thousands to a system of its own, and counts what it answers."""
