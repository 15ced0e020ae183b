"""Flower, the monitoring page, read-only, and told what it missed."""
