"""What producer and workers share: settings, database, queue, object storage. Never imports torch."""
