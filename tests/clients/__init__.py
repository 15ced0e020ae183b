"""Clients that generators make of the OpenAPI document: `make test-clients` compiles them, and runs jobs with them."""
