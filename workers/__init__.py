"""The consumers: Celery tasks, batcher, engine process, models, housekeeper. Never imports `api`."""
