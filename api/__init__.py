"""The producer of jobs: HTTP API, command line, embedded system. Never imports torch or `workers`."""

from tuwen.installation import require_visible

require_visible("shared")
