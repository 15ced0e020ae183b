"""The consumers: Celery tasks, batcher, engine process, models, housekeeper. Never imports `api`."""

from tuwen.installation import require_visible

require_visible("shared")
