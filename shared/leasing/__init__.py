"""Work held under a lease: taken from a queue, renewed by a heartbeat, settled in groups, and given back.

In come claims; out go their endings, each guarded by the epoch of its claim, so that nothing is done twice.
"""
