"""The consumers: Celery tasks, batcher, engine process, models, housekeeper. This package never imports `api`."""
