"""The consumers: Celery tasks, batcher, engine process, models, housekeeper. This package never imports `api`."""

from tuwen.installation import require_visible

require_visible("shared")
