"""`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers): how much of its quota a key has left.

The quota bounds jobs that are not over, at any one time; no window of time is part of it.
"""

from __future__ import annotations

from tuwen.errors import QuotaExceeded


def quota_headers(
    quota: int | None, left: int | None, retry_after: float | None = None, policy: str = QuotaExceeded.policy
) -> dict[str, str]:
    """Header fields for a caller who may have `quota` unfinished jobs (or what `policy` says) and `left` more; none
    without a quota.

    `left` is None where it was not counted; `retry_after` are seconds after which there may be more.
    """
    if quota is None:
        return {}
    # The registered unit that comes closest: a quota of what is under way at the same time.
    bound = {"RateLimit-Policy": f'"{policy}";q={quota};qu="concurrent-requests"'}
    if left is None:
        return bound
    reset = "" if retry_after is None else f";t={max(1, round(retry_after))}"
    return {"RateLimit": f'"{policy}";r={max(0, left)}{reset}', **bound}


def exceeded_headers(error: QuotaExceeded) -> dict[str, str]:
    """Header fields of a refusal; none where the error does not say which quota was exceeded."""
    return quota_headers(error.quota, error.left, error.retry_after, error.policy)
