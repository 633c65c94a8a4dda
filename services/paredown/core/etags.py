"""Preconditions: whether what somebody changes is still what they have read."""


def matches(if_match: str, etag: str) -> bool:
    """Whether an If-Match header names this strong ETag."""
    candidates = [candidate.strip() for candidate in if_match.split(",")]
    return "*" in candidates or etag in candidates
