"""A store in a bucket of S3, or of anything that speaks S3."""

from __future__ import annotations


class S3Store:
    """Artifacts below ``s3://bucket/prefix``."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None = None) -> None:
        raise NotImplementedError("s3:// stores come with the next change")
