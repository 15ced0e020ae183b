"""What the API and the workers share: settings, database, queue, object storage. Never imports torch."""
