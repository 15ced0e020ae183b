"""What can be said in the drawn world: words, scenes, captions, and captions read back. No pictures, no torch."""
