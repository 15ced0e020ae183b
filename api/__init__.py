"""The producer of jobs: HTTP API, client, command line, embedded system. Never imports torch or `workers`."""
