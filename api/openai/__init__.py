"""Routes at the paths that clients of OpenAI's API expect; they create and show the same jobs as all other routes."""
