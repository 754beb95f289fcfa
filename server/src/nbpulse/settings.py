"""Every setting, once, frozen. Read from NBPULSE_* in the environment; docs/settings.md is made from this file.

Only the command line and `resources` know settings; every other part is given plain arguments. Plain msgspec, since
pydantic-settings costs every process 0.4 s of import and 10 MB (measured), which a start within 2 s has not.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from nbpulse.allowances import DEFAULT, Limits
from nbpulse.errors import StartupError

_PREFIX = "NBPULSE_"


def find_data_dir() -> Path:
    """Where this kind of user keeps data; root's home is closed to the account that the servers then run as."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/nbpulse")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "nbpulse"


_Port = Annotated[int, Meta(ge=0, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings with their defaults; units are in the names."""

    data_dir: Annotated[Path, Meta(description="Where the embedded servers and keys live")] = msgspec.field(
        default_factory=find_data_dir
    )
    host: Annotated[str, Meta(description="Address to listen on; `lan` = this machine's own address")] = "127.0.0.1"
    port: Annotated[_Port, Meta(description="Port of the API and the board; 0 = any free one")] = 8642
    public_url: Annotated[str | None, Meta(description="The address people use, when a proxy stands in front")] = None
    tls_cert: Annotated[Path | None, Meta(description="Certificate file (PEM) for https")] = None
    tls_key: Annotated[Path | None, Meta(description="Private key file (PEM) for https")] = None
    database_url: Annotated[
        str | None, Meta(description="The owner's URL of your own PostgreSQL (15-18); unset = the embedded one")
    ] = None
    api_database_url: Annotated[str | None, Meta(description="The API's login, when not made by `migrate`")] = None
    worker_database_url: Annotated[str | None, Meta(description="The worker's login, when not made by `migrate`")] = (
        None
    )
    replica_urls: Annotated[
        str | None,
        Meta(
            description="Its read replicas, comma between, as `postgresql://replica:5432/nbpulse`: history and reports"
            " are read there; without a login: by the API's"
        ),
    ] = None
    replica_lag_max_s: Annotated[
        float, Meta(gt=0, le=3600, description="A replica further behind is not read from: the primary is")
    ] = 10.0
    redis_url: Annotated[
        str | None,
        Meta(
            description="URL of your own Redis 7 or Valkey 8-9, or `redis+cluster://host:port,host:port` of a cluster "
            "(`rediss+cluster` for TLS); unset = the embedded one"
        ),
    ] = None
    influx_url: Annotated[
        str | None,
        Meta(description="`http://[user:password@]host:8086/database` of InfluxDB; unset = time series in PostgreSQL"),
    ] = None
    influx_token: Annotated[str | None, Meta(description="Token for InfluxDB 2.x or 3.x")] = None
    influx_tags: Annotated[
        Literal["specified", "lean"],
        Meta(description="`lean`: cell_index and event_type as fields, for far fewer series"),
    ] = "specified"
    influx_error_text: Annotated[
        Literal["normalised", "none", "full"],
        Meta(description="What the field error_message holds: the masked text, nothing, or all the student was told"),
    ] = "normalised"
    hub_api_url: Annotated[
        str | None,
        Meta(description="API of a JupyterHub whose users take part, as `http://127.0.0.1:8081/hub/api`; unset = none"),
    ] = None
    hub_public_url: Annotated[
        str | None, Meta(description="Where browsers reach that hub, as `https://hub.example`, to sign in at the board")
    ] = None
    hub_client_secret: Annotated[str | None, Meta(description="The `api_token` of the service nbpulse at that hub")] = (
        None
    )
    oidc_issuer: Annotated[
        str | None, Meta(description="Issuer of an OpenID Connect provider for signing in at the board; unset = none")
    ] = None
    oidc_client_id: Annotated[str | None, Meta(description="nbpulse's client id at that provider")] = None
    oidc_client_secret: Annotated[str | None, Meta(description="The secret to it")] = None
    oidc_name: Annotated[str | None, Meta(description="What its button is called; unset = the issuer's host")] = None
    encryption_keys: Annotated[
        str | None, Meta(description="Fernet keys, newest first, comma between; unset = the data directory's key file")
    ] = None
    promise: Annotated[
        Literal["failover", "power", "process", "memory"],
        Meta(
            description="What an accepted event survives: the loss of its server for good (a replica has it), a power "
            "cut, a killed process, nothing"
        ),
    ] = "power"
    promise_stated: Annotated[
        bool, Meta(description="The stream's server forbids CONFIG: the operator states that it keeps the promise")
    ] = False
    retention_days: Annotated[
        int,
        Meta(ge=0, description="Days that events, contents, messages and raw points are kept; 0 = for ever"),
    ] = 180
    session_retention_days: Annotated[
        int, Meta(ge=0, description="Days that sessions and derived points are kept; 0 = for ever")
    ] = 730
    backlog_limit_events: Annotated[int, Meta(ge=1000, description="Unprocessed events before the API says 503")] = (
        500_000
    )
    claim_idle_s: Annotated[
        float, Meta(gt=0, description="A delivery this long unfinished is given to another worker")
    ] = 5.0
    worker_name: Annotated[str, Meta(max_length=60, description="This worker's slot; stable over restarts")] = (
        "worker-1"
    )
    metrics_port: Annotated[_Port, Meta(description="Loopback port of the worker's /metrics; 0 = any")] = 0
    trusted_proxies: Annotated[
        str, Meta(description="Reverse proxies whose X-Forwarded-For and -Proto are believed: addresses, comma between")
    ] = "127.0.0.1,::1"
    connections_max: Annotated[
        int, Meta(ge=100, description="Connections one API process keeps open; at most 3/4 of what the system lets it")
    ] = 8_000
    limit_student_events: Annotated[int, Meta(ge=60, description="Events one student may deliver a minute")] = (
        DEFAULT.student_events
    )
    limit_course_events: Annotated[int, Meta(ge=60, description="Events a course's students may deliver a minute")] = (
        DEFAULT.course_events
    )
    limit_token_requests: Annotated[
        int, Meta(ge=60, description="Requests one token may make a minute, deliveries of events aside")
    ] = DEFAULT.token_requests
    limit_address_requests: Annotated[
        int, Meta(ge=60, description="Requests one address (a school behind one router) may make a minute")
    ] = DEFAULT.address_requests
    limit_address_refusals: Annotated[
        int, Meta(ge=10, description="Tokens that do not work that one address may try a minute")
    ] = DEFAULT.address_refusals
    limit_address_guesses: Annotated[
        int, Meta(ge=10, description="Wrong codes and passwords one address may try in 10 minutes, at all processes")
    ] = 300
    limit_account_guesses: Annotated[
        int, Meta(ge=3, description="Wrong passwords one address may try for one account in 10 minutes, as above")
    ] = 10
    limit_person_boards: Annotated[int, Meta(ge=1, description="Boards one person may have open at once")] = (
        DEFAULT.person_boards
    )
    language: Annotated[Literal["ja", "en"] | None, Meta(description="Language of terminal texts; unset = LANG")] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="What is logged")] = "info"
    api_count: Annotated[int, Meta(ge=1, le=16, description="API processes that `up` starts")] = 1
    worker_count: Annotated[int, Meta(ge=1, le=16, description="Worker processes that `up` starts")] = 1
    deaths_per_minute: Annotated[
        int, Meta(ge=1, description="`up` gives up when a part fails this often within a minute; raise it to torture")
    ] = 5

    def read_limits(self) -> Limits:
        """The settings limit_*, each for one API process."""
        return Limits(**{name: getattr(self, f"limit_{name}") for name in Limits.__struct_fields__})

    def read_encryption_keys(self) -> list[bytes]:
        """
        The keys that seal people's texts, newest first; the key file is made (0600) at the first start.

        Raises StartupError: the file cannot be read or made (NB-3051), what is given is no key (NB-3061).
        """
        if self.key_file is None:
            keys = (self.encryption_keys or "").replace(",", " ").split()
        else:
            from nbpulse.crypto import make_key  # its import is slow, and not every command needs a key

            keys = self._read_secret(self.key_file.name, lambda: make_key().decode()).split()
        if not keys or not all(re.fullmatch(r"[\w-]{43}=", key, re.ASCII) for key in keys):
            raise StartupError("NB-3061", place=self.key_file or "NBPULSE_ENCRYPTION_KEYS")
        return [key.encode() for key in keys]

    @property
    def key_file(self) -> Path | None:
        """Where the keys stand; None when they are given in NBPULSE_ENCRYPTION_KEYS."""
        return None if self.encryption_keys else self.data_dir / "encryption.key"

    @property
    def has_full_texts(self) -> bool:
        """Whether points bear error texts in full: only on their way to InfluxDB."""
        return bool(self.influx_url) and self.influx_error_text == "full"

    def make_password(self, login: str) -> str:
        """The password of a login that `migrate` makes: derived from the data directory's secret, never stored."""
        secret = self._read_secret("secret.key", lambda: secrets.token_hex(32))
        return hmac.new(secret.strip().encode(), login.encode(), hashlib.sha256).hexdigest()

    def make_tombstone_key(self) -> bytes:
        """The key of the tombstones' marks, derived from the data directory's secret like the passwords."""
        return bytes.fromhex(self.make_password("tombstones"))

    def _read_secret(self, name: str, make: Callable[[], str]) -> str:
        path = self.data_dir / name
        try:
            if not path.exists():
                self.data_dir.mkdir(parents=True, exist_ok=True)
                # Written aside and linked into place: of two processes starting at once both read the same secret.
                draft = path.with_name(f"{name}.{os.getpid()}")
                descriptor = os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(make() + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    path.hardlink_to(draft)
                except FileExistsError:
                    pass
                finally:
                    draft.unlink()
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise StartupError("NB-3051", path=str(path), detail=error.strerror or str(error)) from error


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in NBPULSE_* variables; an empty one counts as unset. Raises StartupError (NB-3057): a bad value."""
    found: dict[str, Any] = {}
    for name in Settings.__struct_fields__:
        if value := environment.get(_PREFIX + name.upper()):
            found[name] = value.lower() if value.lower() in {"true", "false"} else value
    try:
        return msgspec.convert(found, Settings, strict=False, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        raise StartupError("NB-3057", detail=str(error)) from error
