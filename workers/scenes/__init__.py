"""The drawn world: scenes, their captions and their pictures."""
