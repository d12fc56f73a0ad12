"""A store in a bucket of S3, or of anything that speaks S3."""

from __future__ import annotations

import functools
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from launcher.artifacts.deadline import within
from launcher.artifacts.keys import Advance, HashingReader, StoreError, check_key, folder_prefix, open_regular
from launcher.artifacts.manifest import FileEntry

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3.client import S3Client

# 64 MiB x 16 threads measured 0.45-0.71 s of client CPU per GiB on loopback; boto3's defaults 2.8 s.
# Parts wait in memory until they are sent, at most THREADS of them for all files together: 1 GiB.
PART_BYTES = 64 * 1024 * 1024
THREADS = 16
CHECK_SECONDS = 5.0

KEYS_AT_ONCE = 1000  # the most that one listing or deletion takes
_ABSENT = {"404", "NoSuchKey"}
_EXISTS = {"412", "PreconditionFailed"}
_IN_FLIGHT = {"409", "ConditionalRequestConflict"}
_CONFLICT_TRIES = 20
_DENIED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


class S3Store:
    """Artifacts below ``s3://bucket/prefix``.

    ``endpoint`` is None for AWS, or for what ``AWS_ENDPOINT_URL`` says. Credentials come from where boto3
    looks for them; they are never written anywhere.
    """

    def __init__(self, bucket: str, prefix: str, endpoint: str | None = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.endpoint = (
            endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        )
        self._lock = threading.Lock()
        self._connected: tuple[S3Client, Any] | None = None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def put_file(self, key: str, path: Path, advance: Advance | None = None) -> FileEntry:
        with open_regular(path) as file, self._errors("write", key):
            reader = HashingReader(file, advance)
            self._transfers().upload(reader, self.bucket, self._key(key)).result()
        return FileEntry(key, reader.size, reader.hexdigest())

    def get_file(self, key: str, path: Path, advance: Advance | None = None) -> None:
        with self._errors("read", key):
            # The manager writes ranges into a temporary file beside `path` and renames it at the end.
            subscribers = [_Subscriber(advance)] if advance else []
            self._transfers().download(
                self.bucket, self._key(key), str(path), subscribers=subscribers
            ).result()

    def put_bytes(self, key: str, data: bytes, if_absent: bool = False) -> bool:
        with self._errors("write", key):
            if if_absent:
                return self._create(self._client(), key, data)
            self._client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data)
            return True

    def get_bytes(self, key: str) -> bytes | None:
        client = self._client()
        with self._errors("read", key):
            try:
                return client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"].read()
            except client.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """The content of ``key`` and the tag of this very content, for ``swap``; None when absent."""
        client = self._client()
        with self._errors("read", key):
            try:
                reply = client.get_object(Bucket=self.bucket, Key=self._key(key))
                return reply["Body"].read(), reply["ETag"]
            except client.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

    def swap(self, key: str, data: bytes, tag: str | None) -> bool:
        """Write ``key`` if its content is still that of ``tag``, or with None if it is absent.

        False when another writer was first, and also when the reply to our own write was lost.
        """
        client = self._client()
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        with self._errors("write", key):
            try:
                client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
            except client.exceptions.ClientError as error:
                if _code(error) in _EXISTS | _IN_FLIGHT | _ABSENT:
                    return False
                raise
        return True

    def children(self, prefix: str, begins: str = "") -> list[str]:
        folder = self._folder(prefix)
        names: list[str] = []
        with self._errors("list", prefix):
            for page in self._pages(Prefix=folder + begins, Delimiter="/"):
                names += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
                names += [item["Key"] for item in page.get("Contents", [])]
        return sorted(name.removeprefix(folder) for name in names if name != folder)

    def list(self, prefix: str) -> list[str]:
        keys: list[str] = []
        with self._errors("list", prefix):
            for page in self._pages(Prefix=self._folder(prefix)):
                keys += [item["Key"].removeprefix(self.prefix) for item in page.get("Contents", [])]
        return sorted(keys)

    def size(self, key: str) -> int | None:
        client = self._client()
        with self._errors("read", key):
            try:
                return client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]
            except client.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

    def delete_prefix(self, prefix: str) -> None:
        key = prefix.rstrip("/")
        keys = [key, *self.list(key)]
        with self._errors("delete", key):
            for start in range(0, len(keys), KEYS_AT_ONCE):
                self._delete(keys[start : start + KEYS_AT_ONCE])

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    def check(self) -> None:
        try:
            within(CHECK_SECONDS, self._probe)
        except TimeoutError:
            raise StoreError(
                f"{self.url}{self._at()} did not answer within {CHECK_SECONDS:.0f} seconds", hint=_REACH_HINT
            ) from None

    def date(self) -> str | None:
        """What time the service says it is, as HTTP writes it. Raises StoreError when it does not answer."""
        with self._errors("read", ""):
            reply = self._client().head_bucket(Bucket=self.bucket)
        return reply["ResponseMetadata"]["HTTPHeaders"].get("date")

    def _pages(self, **arguments: Any) -> Any:
        pages = self._client().get_paginator("list_objects_v2")
        return pages.paginate(Bucket=self.bucket, PaginationConfig={"PageSize": KEYS_AT_ONCE}, **arguments)

    def _create(self, client: S3Client, key: str, data: bytes) -> bool:
        for left in reversed(range(_CONFLICT_TRIES)):
            try:
                client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
                return True
            except client.exceptions.ClientError as error:
                if _code(error) in _IN_FLIGHT and left:
                    # Another writer of this key is under way; S3 asks the loser to try again.
                    time.sleep(random.uniform(0.02, 0.2))
                    continue
                if _code(error) not in _EXISTS:
                    raise
                # When botocore sent the request twice, the first may have been ours and its reply lost.
                repeated = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                return repeated and self.get_bytes(key) == data
        raise AssertionError("the last try returns or raises")

    def _delete(self, keys: Sequence[str]) -> None:
        reply = self._client().delete_objects(
            Bucket=self.bucket,
            Delete={"Objects": [{"Key": self._key(key)} for key in keys], "Quiet": True},
        )
        for failure in reply.get("Errors", []):
            raise StoreError(
                f"cannot delete s3://{self.bucket}/{failure.get('Key')}{self._at()}: {failure.get('Message')}"
            )

    def _probe(self) -> None:
        """Create a key twice, with one try and short time-outs: the second must be refused."""
        from botocore.config import Config

        key = f".nemo-sky-check/{uuid.uuid4().hex}"
        with self._errors("write", key):
            client = self._connect(
                Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})
            )
            self._create(client, key, b"nemo-sky")
            twice = self._create(client, key, b"again")
            client.delete_object(Bucket=self.bucket, Key=self._key(key))
        if twice:
            raise StoreError(
                f"{self.url}{self._at()} ignores If-None-Match, so two publishers could take one version",
                hint="use a service that has conditional writes, as AWS, MinIO, GCS and R2 have",
            )

    def _client(self) -> S3Client:
        return self._connection()[0]

    def _transfers(self) -> Any:
        return self._connection()[1]

    def _connection(self) -> tuple[S3Client, Any]:
        """The client and its transfer manager, made on first use and shared by all threads."""
        with self._lock:
            if self._connected is None:
                from botocore.config import Config
                from s3transfer.manager import TransferConfig, TransferManager

                with self._errors("open", ""):
                    client = self._connect(
                        Config(
                            connect_timeout=10,
                            read_timeout=60,
                            retries={"mode": "standard", "total_max_attempts": 8},
                            max_pool_connections=2 * THREADS,
                            tcp_keepalive=True,
                        )
                    )
                limits = TransferConfig(
                    multipart_threshold=PART_BYTES,
                    multipart_chunksize=PART_BYTES,
                    max_request_concurrency=THREADS,
                    max_in_memory_upload_chunks=THREADS,
                )
                self._connected = (client, TransferManager(client, limits))
            return self._connected

    def _connect(self, config: Any) -> S3Client:
        import botocore.session
        from botocore.config import Config

        common = Config(
            # Our manifests carry sha256 sums: checksums of every part again would cost CPU and find no more.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={
                "payload_signing_enabled": False,
                "addressing_style": "path" if self.endpoint else "auto",
            },
        )
        session = botocore.session.get_session()
        session.register_component("data_loader", _loader())
        try:
            client = session.create_client(
                "s3",
                endpoint_url=self.endpoint,
                region_name=session.get_config_variable("region") or "us-east-1",
                config=common.merge(config),
            )
        except ValueError as error:
            raise StoreError(f"{self.url}: {error}", hint=_REACH_HINT) from error
        return cast("S3Client", client)

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _folder(self, prefix: str) -> str:
        return self.prefix + folder_prefix(prefix)

    def _at(self) -> str:
        return f" at {self.endpoint}" if self.endpoint else ""

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        """Turn whatever botocore raises into a StoreError that names the place and what to do."""
        from botocore import exceptions
        from s3transfer.exceptions import RetriesExceededError

        place = f"s3://{self.bucket}/{self.prefix}{key}{self._at()}"
        try:
            yield
        except exceptions.ClientError as error:
            code = _code(error)
            if code in _ABSENT:
                raise StoreError(f"{place} is missing from the artifact store") from error
            message = error.response.get("Error", {}).get("Message") or code
            hint = {"NoSuchBucket": f"create the bucket {self.bucket!r}, or name another in `artifacts:`"}
            raise StoreError(
                f"cannot {verb} {place}: {message}",
                hint=_CREDENTIALS_HINT if code in _DENIED else hint.get(code),
            ) from error
        except (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.ProfileNotFound,
        ) as error:
            raise StoreError(f"cannot {verb} {place}: {error}", hint=_CREDENTIALS_HINT) from error
        except (exceptions.BotoCoreError, RetriesExceededError) as error:
            raise StoreError(f"cannot {verb} {place}: {error}", hint=_REACH_HINT) from error


_REACH_HINT = "check the network, `artifacts:` and `s3_endpoint:` in nemo-sky.yaml, or AWS_ENDPOINT_URL"
_CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to a user who may read, write, list "
    "and delete there"
)


@functools.cache
def _loader() -> Any:
    """botocore's description of S3, read once for all clients of the process: it takes 0.1 s of CPU."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


class _Subscriber:
    """What s3transfer calls as bytes arrive; it looks methods up by name."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def on_queued(self, **_: Any) -> None:
        pass

    def on_progress(self, bytes_transferred: int, **_: Any) -> None:
        self._advance(bytes_transferred)

    def on_done(self, **_: Any) -> None:
        pass


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
