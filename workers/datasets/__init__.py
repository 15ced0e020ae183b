"""Bulk annotation: sources are planned into shards, shards are run, results are exported."""
