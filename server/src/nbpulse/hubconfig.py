"""`nbpulse hub-config`: what a JupyterHub's configuration needs so that its users are students here without a step.

Promises: stdout is the configuration, ready for a file; stderr says where it goes. What is printed for a plain
JupyterHub is what the tests start a real one with; the other two carry the same lines.
"""

from __future__ import annotations

import json
from enum import Enum
from string import Template
from textwrap import indent
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from nbpulse.errors import StartupError
from nbpulse.network import is_loopback
from nbpulse.terminal import answer, get_text, say


class Kind(Enum):
    """How the hub is installed."""

    PLAIN = "plain"
    TLJH = "tljh"
    Z2JH = "z2jh"


# Where nbpulse reaches the hub's API, as each kind lays it by default.
HUB_API_URLS: Final = {
    Kind.PLAIN: "http://127.0.0.1:8081/hub/api",
    Kind.TLJH: "http://127.0.0.1:15001/hub/api",
    Kind.Z2JH: "http://hub:8081/hub/api",
}

# A token has no more scopes than its owner, hence both roles: `server` is that of the token in each user's server.
_ROLES: Final = Template("""\
# $note_scopes
c.JupyterHub.custom_scopes.update({
    "custom:nbpulse:write": {"description": "Tell nbpulse what one runs in one's notebooks"},
    "custom:nbpulse:read": {"description": "Read in nbpulse what one's courses show their staff"},
})
# $note_roles
c.JupyterHub.load_roles.extend([
    {"name": "user", "scopes": ["self", "access:services!service=nbpulse", "custom:nbpulse:write"]},
    {
        "name": "server",
        "scopes": [
            "users:activity!user", "access:servers!server",
            "access:services!service=nbpulse", "custom:nbpulse:write",
        ],
    },
])
""")
# Without the secret, which both must know, there is no such service: everything else works as before.
_SERVICE: Final = Template("""\
# $note_service
import os
if os.environ.get("NBPULSE_HUB_CLIENT_SECRET"):
    c.JupyterHub.services.append({
        "name": "nbpulse",
        "api_token": os.environ["NBPULSE_HUB_CLIENT_SECRET"],
        "oauth_client_id": "service-nbpulse",
        "oauth_redirect_uri": $callback,
        "oauth_no_confirm": True,
    })
""")
_ENVIRONMENT: Final = Template("""\
# $note_environment
c.Spawner.environment.update({"NBPULSE_URL": $url})
""")
_VALUES: Final = Template("""\
# $note_made
# $note_groups
hub:
  extraConfig:
    nbpulse: |
$python
singleuser:
  extraEnv:
    # $note_environment
    NBPULSE_URL: $url
""")


def print_hub_config(
    kind: Annotated[Kind, typer.Argument(help=get_text("arg_hub_kind"))] = Kind.PLAIN,
    public_url: Annotated[str, typer.Option(envvar="NBPULSE_PUBLIC_URL", help=get_text("opt_hub_public_url"))] = "",
) -> None:
    """The command. Raises StartupError (NB-3083) without an address that a student's server can use."""
    answer(compose(kind, public_url))
    say(get_text("hub_server_side", url=HUB_API_URLS[kind]))
    say(get_text("hub_sign_in"))
    places = {
        Kind.PLAIN: get_text("hub_place_plain"),
        Kind.TLJH: get_text("hub_place_littlest"),
        Kind.Z2JH: get_text("hub_place_kubernetes"),
    }
    say(places[kind])


def compose(kind: Kind, public_url: str) -> str:
    """The configuration as text. Raises StartupError (NB-3083)."""
    url = public_url.rstrip("/")
    parts = urlsplit(url)
    is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    if not is_usable or (kind is Kind.Z2JH and is_loopback(parts.hostname or "")):
        raise StartupError("NB-3083", url=public_url or "-", kind=kind.value)
    notes = {
        "note_made": get_text("hub_note_made", kind=kind.value),
        "note_groups": get_text("hub_note_groups"),
        "note_scopes": get_text("hub_note_scopes"),
        "note_roles": get_text("hub_note_roles"),
        "note_environment": get_text("hub_note_environment"),
        "note_service": get_text("hub_note_service"),
        "url": json.dumps(url),
        "callback": json.dumps(f"{url}/api/v1/sign-in/jupyterhub/callback"),
    }
    roles = _ROLES.substitute(notes) + _SERVICE.substitute(notes)
    if kind is Kind.Z2JH:
        return _VALUES.substitute(notes, python=indent(roles, " " * 6).rstrip())
    heading = Template("# $note_made\n# $note_groups\n").substitute(notes)
    return (heading + roles + _ENVIRONMENT.substitute(notes)).rstrip()
