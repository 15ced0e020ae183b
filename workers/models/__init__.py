"""Plain torch modules, one model a file."""
