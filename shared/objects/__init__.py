"""Object storage: bytes come in under keys, and go out of a folder or a bucket, whole or as a stream."""
