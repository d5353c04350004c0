"""The errors of wdstools: every one says what was wrong, where, and is also the builtin that fits.

WdsError
├── ShardError (ValueError)             the bytes of a shard are not what they must be; has url and offset
│   ├── TruncatedError (EOFError)       the shard ends before its end-of-archive marker
│   ├── HeaderError                     a 512-byte block that should be a tar header is not
│   ├── TrailingError                   bytes follow the end-of-archive marker
│   ├── DuplicateFieldError             two members of one sample have the same field
│   ├── InterleavedError                a key comes back after another key
│   ├── UnsupportedError                a member that cannot be a field as it is (sparse files)
│   └── ChecksumError                   bytes that are not those whose checksum the index keeps
├── StoreError (OSError)                a URL could not be opened or read
│   ├── NotFoundError (FileNotFoundError)
│   ├── AccessError (PermissionError)    no credentials, wrong or expired ones, or a login page in place of data
│   ├── ChangedError                    an object is not the one that was read before: its ETag, size or time differs
│   ├── PastEndError (EOFError)         a range that ends past the end of its object
│   ├── UnreachableError (ConnectionError)  no server there, or it kept failing until the retries were spent
│   └── PipeError                       the command of a `pipe:` URL failed; its stderr is in the message
├── UrlError (ValueError)               a URL or brace pattern that cannot be understood
├── IndexFileError (ValueError)         an index that cannot be read
│   └── StaleIndexError                 an index that does not describe the shard it names
├── KeyMissingError (KeyError)          no sample has this key
├── QueryError (ValueError)             SQL that DuckDB refused
├── StateError (ValueError)             the state of a loader that belongs to other data or other options
├── DecodeError (ValueError)            the bytes of a field that its decoder does not take; has key, url and field
├── EncodeError (TypeError)             a value that no encoder turns into the bytes of a field
├── SourceError (ValueError)            input of wds-shard that cannot be used: a file, a row, a key
└── DestinationError (FileExistsError)  output of wds-shard that would overwrite or mix
"""

from __future__ import annotations


class WdsError(Exception):
    """Base of all errors that wdstools raises on purpose."""


class ShardError(WdsError, ValueError):
    """The bytes of a shard are not what they must be.

    `url`: the shard, or None; `offset`: bytes from the start of the shard, or None; `reason`: one clause.
    """

    def __init__(self, reason: str, url: str | None = None, offset: int | None = None) -> None:
        where = "" if offset is None else f" at byte {offset}"
        super().__init__(f"{url or 'shard'}: {reason}{where}")
        self.reason, self.url, self.offset = reason, url, offset

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.url, self.offset)


class TruncatedError(ShardError, EOFError):
    """The shard ends before its end-of-archive marker."""


class HeaderError(ShardError):
    """A 512-byte block that should be a tar header is not one."""


class TrailingError(ShardError):
    """Bytes other than zero follow the end-of-archive marker."""


class DuplicateFieldError(ShardError):
    """Two members of one sample have the same field."""


class InterleavedError(ShardError):
    """A key comes back after another key: its sample would be cut in two."""


class UnsupportedError(ShardError):
    """A member that cannot be a field as it is, such as a sparse file."""


class ChecksumError(ShardError):
    """Bytes that are not those whose checksum the index keeps."""


class StoreError(WdsError, OSError):
    """A URL could not be opened or read."""


class NotFoundError(StoreError, FileNotFoundError):
    """Nothing is there under this URL."""


class AccessError(StoreError, PermissionError):
    """Credentials are lacking, wrong or expired, or do not allow this; or a login page came in place of data."""


class ChangedError(StoreError):
    """An object was replaced between two reads of it."""


class PastEndError(StoreError, EOFError):
    """An object ends before the end of a range that was asked for."""


class UnreachableError(StoreError, ConnectionError):
    """No server answers under this URL, or it kept failing until the retries were spent."""


class PipeError(StoreError):
    """The command of a `pipe:` URL failed; what it said on stderr is in the message."""


class UrlError(WdsError, ValueError):
    """A URL or brace pattern that cannot be understood."""


class IndexFileError(WdsError, ValueError):
    """An index that cannot be read."""


class StaleIndexError(IndexFileError):
    """An index that does not describe the shard it names."""


class KeyMissingError(WdsError, KeyError):
    """No sample has this key."""

    def __str__(self) -> str:
        return str(self.args[0])


class QueryError(WdsError, ValueError):
    """SQL that DuckDB refused."""


class StateError(WdsError, ValueError):
    """The state of a loader that belongs to other data or other options, or is no such state."""


class DecodeError(WdsError, ValueError):
    """The bytes of a field that its decoder does not take. The cause is what the decoder raised.

    `key`, `url`: of the sample (None: it has none); `field`; `reason`: one clause.
    """

    def __init__(self, reason: str, key: str | None, url: str | None, field: str) -> None:
        super().__init__(f"{url or 'sample'}: field {field!r} of sample {key!r} cannot be decoded: {reason}")
        self.reason, self.key, self.url, self.field = reason, key, url, field

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.key, self.url, self.field)


class EncodeError(WdsError, TypeError):
    """A value that no encoder turns into the bytes of a field."""


class SourceError(WdsError, ValueError):
    """Input that cannot be made into samples: a file, a manifest row, a key."""


class DestinationError(WdsError, FileExistsError):
    """Output that would overwrite shards or mix with those of another run."""
