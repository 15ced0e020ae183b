"""What mends the rest, expired leases, lost messages, webhooks that are owed, objects that no row names; and what works
off batches.
"""
