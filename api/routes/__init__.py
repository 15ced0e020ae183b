"""The routes, by what they are about: each turns a request into a call of the producer or the database, and back."""
