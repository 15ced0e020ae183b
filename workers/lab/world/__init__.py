"""The drawn world: scenes come in, pictures go out."""
