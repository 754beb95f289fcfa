"""A real JupyterHub with its proxy, configured by what `nbpulse hub-config` prints; its users' servers are real ones.

The proxy is the implementation in Python (PyPI), so that a bare machine needs no node. It stands apart from the hub, as
in a large installation: the users' servers go on while the hub is away.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import psutil

from torture.systems import find_free_port, make_environment

# Beside what hub-config prints: who signs in, where servers run, and a service with which the test acts as an
# administrator does.
_MORE = """
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.bind_url = "{url}"
c.JupyterHub.hub_bind_url = "{hub_url}"
c.JupyterHub.db_url = "sqlite:///{place}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{place}/cookie_secret"
c.JupyterHub.cleanup_servers = False
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = "{proxy_api_url}"
c.ConfigurableHTTPProxy.auth_token = "{proxy_token}"
c.Authenticator.allowed_users = {{{users}}}
c.JupyterHub.load_groups = {groups}
c.JupyterHub.services.append({{"name": "administrator", "api_token": "{token}"}})
c.JupyterHub.load_roles.append({{
    "name": "administrator",
    "services": ["administrator"],
    "scopes": ["admin:users", "admin:servers", "admin:groups", "tokens", "access:servers"],
}})
c.SimpleLocalProcessSpawner.home_dir_template = "{place}/home/{{username}}"
c.Spawner.cmd = ["{python}", "-m", "jupyterhub.singleuser"]
c.Spawner.args = ["--allow-root"]
c.Spawner.env_keep = ["PATH", "LANG"]
c.Spawner.environment.update({{"JUPYTERHUB_SINGLEUSER_APP": "jupyter_server.serverapp.ServerApp"}})
"""


class Hub:
    """The hub's process and its API, asked as the administrator."""

    def __init__(self, place: Path, python: Path, port: int, public_port: int, client_secret: str) -> None:
        self.place = place
        self.api_url = f"http://127.0.0.1:{port}/hub/api"
        self.url = f"http://127.0.0.1:{public_port}"
        self._client_secret = client_secret
        self._python = python
        self._token, self._proxy_token = secrets.token_hex(16), secrets.token_hex(16)
        self._proxy_api_url = f"http://127.0.0.1:{find_free_port()}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        headers = {"Authorization": f"token {self._token}"}
        self.http = httpx2.AsyncClient(base_url=self.api_url, headers=headers, timeout=30, trust_env=False)

    def write_config(self, printed: str, groups: Mapping[str, list[str]]) -> None:
        """`printed` by hub-config, and the lines of this test's hub."""
        users = sorted({user for members in groups.values() for user in members})
        more = _MORE.format(
            url=self.url,
            hub_url=self.api_url.removesuffix("/hub/api"),
            place=self.place,
            proxy_api_url=self._proxy_api_url,
            proxy_token=self._proxy_token,
            users=", ".join(repr(user) for user in users),
            groups={name: {"users": members} for name, members in groups.items()},
            token=self._token,
            python=self._python,
        )
        (self.place / "jupyterhub_config.py").write_text(printed + more, encoding="utf-8")

    async def start_proxy(self) -> None:
        """As an administrator's own service would."""
        ports = [self.url.rsplit(":", 1)[1], self._proxy_api_url.rsplit(":", 1)[1]]
        target = self.api_url.removesuffix("/hub/api")
        program = Path(sys.executable).with_name("configurable-http-proxy")
        command = [str(program), "--ip", "127.0.0.1", "--port", ports[0]]
        command += ["--api-ip", "127.0.0.1", "--api-port", ports[1]]
        command += ["--default-target", target, "--error-target", f"{target}/hub/error"]
        self._start("proxy", command, {"CONFIGPROXY_AUTH_TOKEN": self._proxy_token})

    async def start(self) -> None:
        """The hub; returns when its API answers."""
        self._start(
            "hub",
            [sys.executable, "-m", "jupyterhub", "-f", str(self.place / "jupyterhub_config.py")],
            {"NBPULSE_HUB_CLIENT_SECRET": self._client_secret},
        )
        async with asyncio.timeout(60):
            while not await self._is_answering():
                assert self._processes["hub"].poll() is None, self.read_log("hub")
                await asyncio.sleep(0.1)

    async def _is_answering(self) -> bool:
        try:
            return (await self.http.get("/")).status_code == 200
        except httpx2.HTTPError:
            return False

    async def kill(self) -> None:
        """SIGKILL for the hub alone: its users' servers and the proxy go on."""
        self._processes["hub"].kill()
        await asyncio.to_thread(self._processes["hub"].wait)

    async def start_server(self, user: str) -> None:
        """The user's own server, as the button does; returns when it is ready."""
        (await self.http.post(f"/users/{user}/server")).raise_for_status()
        async with asyncio.timeout(90):
            while not (await self.http.get(f"/users/{user}")).json()["servers"].get("", {}).get("ready"):  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    def read_environment(self, user: str) -> dict[str, str]:
        """The environment of the user's server."""
        for process in psutil.Process(self._processes["hub"].pid).children(recursive=True):
            with process.oneshot():
                if "jupyterhub.singleuser" in process.cmdline() and process.environ().get("JUPYTERHUB_USER") == user:
                    return process.environ()
        raise AssertionError(f"no server of {user}")

    @asynccontextmanager
    async def sign_in(self, user: str) -> AsyncIterator[httpx2.AsyncClient]:
        """The user's server through the proxy, as who may do what its user may."""
        url = f"{self.url}/user/{user}/"
        async with httpx2.AsyncClient(base_url=url, headers=self.http.headers, timeout=30, trust_env=False) as http:
            yield http

    def read_log(self, name: str) -> str:
        """The end of what it said."""
        return (self.place / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-5_000:]

    def _start(self, name: str, command: list[str], more: Mapping[str, str]) -> None:
        with (self.place / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=make_environment(more),
                cwd=self.place,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    async def stop(self) -> None:
        """Everything, the users' servers and kernels too; whoever has lost their parent is known by the place."""
        await self.http.aclose()
        ours = [one for one in psutil.process_iter() if one.pid != os.getpid() and self._is_ours(one)]
        for process in ours:
            process.kill()
        await asyncio.to_thread(psutil.wait_procs, ours, 10)
        for started in self._processes.values():
            started.wait()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return Path(process.cwd()).is_relative_to(self.place)
        except (psutil.Error, OSError):
            return False


@asynccontextmanager
async def open_hub(place: Path, python: Path, port: int, public_port: int, client_secret: str) -> AsyncIterator[Hub]:
    """A hub that is not started yet, on a free directory; stopped at the end with all it started."""
    (place / "home").mkdir(parents=True)
    hub = Hub(place, python, port, public_port, client_secret)
    try:
        yield hub
    finally:
        await hub.stop()
