"""What producer and workers agree on: types, states, storage, queue. Never imports torch."""

__version__ = "0.1.0"
