"""The `nbpulse` command: reads arguments, calls one function, says what went wrong in one sentence.

Promises: no traceback without `--debug`; what scripts read is on stdout, everything else on stderr; each command says
what it is for and shows one example.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nbpulse import accounts, auditing, collecting, duties, enrolling, sharding
from nbpulse.errors import InvalidInput, NbpulseError, StartupError
from nbpulse.hubconfig import print_hub_config
from nbpulse.terminal import answer, describe_error, get_text, say
from nbpulse.whereabouts import connect as _connect
from nbpulse.whereabouts import find_address
from nbpulse.whereabouts import find_data_dir as _find_data_dir
from nbpulse.whereabouts import find_running as _find_running

app = typer.Typer(
    help=get_text("help_nbpulse"),
    epilog=get_text("help_nbpulse_example"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
tokens = typer.Typer(
    help=get_text("help_token"), epilog=f"{get_text('example')} nbpulse token list", no_args_is_help=True
)
letters = typer.Typer(
    help=get_text("help_dead_letters"),
    epilog=f"{get_text('example')} nbpulse dead-letters list",
    no_args_is_help=True,
)
app.add_typer(tokens, name="token")
app.add_typer(letters, name="dead-letters")

DataDir = Annotated[Path | None, typer.Option("--data", envvar="NBPULSE_DATA_DIR", help=get_text("opt_data"))]
Json = Annotated[bool, typer.Option("--json", help=get_text("opt_json"))]


def _describe(name: str, example: str) -> dict[str, Any]:
    return {"help": get_text(f"help_{name}"), "epilog": f"{get_text('example')} nbpulse {example}"}


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from nbpulse import __version__

        answer(__version__)
        raise typer.Exit


@app.callback()
def _read_common_options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help=get_text("opt_debug"))] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it, before a command is asked for
        bool, typer.Option("--version", help=get_text("opt_version"), callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ["NBPULSE_DEBUG"] = "1"


# --- running it -------------------------------------------------------------------------------------------------------

Host = Annotated[str, typer.Option(envvar="NBPULSE_HOST", help=get_text("opt_host"))]
Port = Annotated[int, typer.Option(envvar="NBPULSE_PORT", min=0, max=65535, help=get_text("opt_port"))]
PublicUrl = Annotated[str | None, typer.Option(envvar="NBPULSE_PUBLIC_URL", help=get_text("opt_public_url"))]
TlsCert = Annotated[Path | None, typer.Option(envvar="NBPULSE_TLS_CERT", help=get_text("opt_tls_cert"))]
TlsKey = Annotated[Path | None, typer.Option(envvar="NBPULSE_TLS_KEY", help=get_text("opt_tls_key"))]
ApiCount = Annotated[int, typer.Option("--api", min=1, max=16, envvar="NBPULSE_API_COUNT", help=get_text("opt_api"))]
WorkerCount = Annotated[
    int, typer.Option("--workers", min=1, max=16, envvar="NBPULSE_WORKER_COUNT", help=get_text("opt_workers"))
]
DeathsLimit = Annotated[
    int, typer.Option("--deaths-per-minute", min=1, envvar="NBPULSE_DEATHS_PER_MINUTE", help=get_text("opt_deaths"))
]
Replica = Annotated[bool, typer.Option("--replica", help=get_text("opt_replica"))]


@app.command(**_describe("up", "up --host lan"))
def up(
    *,
    data: DataDir = None,
    host: Host = "127.0.0.1",
    port: Port = 8642,
    public_url: PublicUrl = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    api_count: ApiCount = 1,
    worker_count: WorkerCount = 1,
    deaths_limit: DeathsLimit = 5,
    replica: Replica = False,
    as_json: Json = False,
    asked_demo: Annotated[str | None, typer.Option("--demo", hidden=True)] = None,
) -> None:
    from nbpulse.announcement import announce
    from nbpulse.running import UpOptions, run_up

    if bool(tls_cert) != bool(tls_key):
        raise StartupError("NB-3020", detail="--tls-cert, --tls-key")
    for path in (tls_cert, tls_key):
        if path and not path.is_file():
            raise StartupError("NB-3020", detail=str(path))
    options = UpOptions(
        data_dir=_find_data_dir(data),
        host=host,
        port=port,
        public_url=public_url,
        tls_cert=tls_cert.absolute() if tls_cert else None,
        tls_key=tls_key.absolute() if tls_key else None,
        database_url=os.environ.get("NBPULSE_DATABASE_URL") or None,
        replica=replica,
        redis_url=os.environ.get("NBPULSE_REDIS_URL") or None,
        api_count=api_count,
        worker_count=worker_count,
        deaths_limit=deaths_limit,
        demo=json.loads(asked_demo) if asked_demo else None,
    )
    say(get_text("starting", path=options.data_dir))
    run_up(options, lambda running: announce(running, as_json=as_json))


@app.command(**_describe("demo", "demo --students 200 --real 2"))
def demo(
    *,
    students: Annotated[int, typer.Option(min=0, max=2000, help=get_text("opt_students"))] = 200,
    speed: Annotated[float, typer.Option(min=0.1, max=100, help=get_text("opt_speed"))] = 1.0,
    seed: Annotated[int, typer.Option(help=get_text("opt_seed"))] = 7,
    minutes: Annotated[float | None, typer.Option(min=0.1, help=get_text("opt_minutes"))] = None,
    real: Annotated[int, typer.Option(min=0, max=20, help=get_text("opt_real"))] = 0,
    answers: Annotated[bool, typer.Option("--answers", help=get_text("opt_answers"))] = False,
    remove: Annotated[bool, typer.Option("--remove", help=get_text("opt_remove"))] = False,
    lang: Annotated[Literal["en", "ja"] | None, typer.Option(help=get_text("opt_lang"))] = None,
    data: DataDir = None,
    host: Host = "127.0.0.1",
    port: Port = 8642,
    public_url: PublicUrl = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    api_count: ApiCount = 1,
    worker_count: WorkerCount = 1,
    as_json: Json = False,
) -> None:
    if lang:
        os.environ["NBPULSE_LANGUAGE"] = lang
    if answers:
        from nbpulse.administration import show_answers

        show_answers(_find_data_dir(data), as_json=as_json)
        return
    if remove:
        from nbpulse.administration import remove_demo

        remove_demo(_find_data_dir(data), _connect(data, is_needed=False))
        return
    if real:
        from nbpulse.simulator import check_real_kernels

        check_real_kernels()
    asked = {"students": students, "speed": speed, "seed": seed, "minutes": minutes, "real": real}
    up(
        data=data,
        host=host,
        port=port,
        public_url=public_url,
        tls_cert=tls_cert,
        tls_key=tls_key,
        api_count=api_count,
        worker_count=worker_count,
        as_json=as_json,
        asked_demo=json.dumps(asked),
    )


@app.command(**_describe("rehearse", "rehearse http://10.0.0.5:8642 --token nbp_staff_… --students 200 --minutes 3"))
def rehearse(
    *,
    url: Annotated[str, typer.Argument(help=get_text("arg_url"))],
    token: Annotated[str | None, typer.Option(envvar="NBPULSE_TOKEN", help=get_text("opt_token"))] = None,
    students: Annotated[int, typer.Option(min=1, max=2000, help=get_text("opt_students"))] = 200,
    minutes: Annotated[float, typer.Option(min=0.1, help=get_text("opt_minutes"))] = 3.0,
    seed: Annotated[int, typer.Option(help=get_text("opt_seed"))] = 7,
    as_json: Json = False,
) -> None:
    from nbpulse.rehearsal import run_rehearsal

    passed = run_rehearsal(url.rstrip("/"), token, students=students, minutes=minutes, seed=seed, as_json=as_json)
    raise typer.Exit(0 if passed else 1)


@app.command(**_describe("api", "api"))
def api(data: DataDir = None) -> None:
    from nbpulse.parts import serve_api

    serve_api(_connect(data))


@app.command(**_describe("worker", "worker"))
def worker(data: DataDir = None) -> None:
    from nbpulse.parts import run_worker

    run_worker(_connect(data))


@app.command(**_describe("migrate", "migrate"))
def migrate(
    *,
    on_citus: Annotated[bool, typer.Option("--citus", help=get_text("opt_citus"))] = False,
    data: DataDir = None,
) -> None:
    from nbpulse.preparation import distribute_schema, ensure_schema

    if on_citus:
        asyncio.run(distribute_schema(_connect(data)))
        say(get_text("distributed"))
        return
    changed = asyncio.run(ensure_schema(_connect(data)))
    say(get_text("migrated" if changed else "schema_current"))


# --- looking after it -------------------------------------------------------------------------------------------------


@app.command(**_describe("doctor", "doctor --json"))
def doctor(data: DataDir = None, as_json: Json = False) -> None:
    from nbpulse.doctor import run_doctor

    raise typer.Exit(run_doctor(_find_data_dir(data), _connect(data, is_needed=False), as_json=as_json))


@app.command(**_describe("link", "link"))
def link(data: DataDir = None, as_json: Json = False) -> None:
    from nbpulse import administration

    code, course = asyncio.run(administration.create_link(_connect(data)))
    url = f"{find_address(data)}/#code={code}"
    answer(json.dumps({"teacher_link": url, **course}) if as_json else url)
    if not as_json:
        say(get_text("link_once"))


@app.command(**_describe("prepare", "prepare week1.ipynb"))
def prepare(
    file: Annotated[Path, typer.Argument(help=get_text("arg_notebook"))],
    *,
    course: Annotated[str, typer.Option("--course", help=get_text("opt_course"))] = "class",
    public_url: PublicUrl = None,
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    from nbpulse import handouts

    url = public_url or _find_running(data).get("url")
    handouts.prepare_notebook(_connect(data), file, course=course, url=url, as_json=as_json)


@app.command("rotate-keys", **_describe("rotate_keys", "rotate-keys --drop-old"))
def rotate_keys(
    *,
    drop_old: Annotated[bool, typer.Option("--drop-old", help=get_text("opt_drop_old"))] = False,
    data: DataDir = None,
) -> None:
    from nbpulse import keys

    keys.rotate_keys(_connect(data, is_needed=False), drop_old=drop_old)


@app.command(**_describe("backup", "backup /mnt/backups/nbpulse-$(date +%F).zip"))
def backup(
    file: Annotated[Path, typer.Argument(help=get_text("arg_backup"))],
    *,
    with_keys: Annotated[bool, typer.Option("--with-keys", help=get_text("opt_with_keys"))] = False,
    force: Annotated[bool, typer.Option("--force", help=get_text("opt_force"))] = False,
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    from nbpulse.backup import back_up

    back_up(_connect(data, is_needed=False), file, overwrite=force, with_keys=with_keys, as_json=as_json)


@app.command(**_describe("restore", "restore /mnt/backups/nbpulse-2026-11-25.zip --data ~/nbpulse-restored"))
def restore(
    file: Annotated[Path, typer.Argument(help=get_text("arg_restore"))],
    *,
    keep_stream: Annotated[bool, typer.Option("--keep-stream", help=get_text("opt_keep_stream"))] = False,
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    from nbpulse import backup

    backup.restore(_connect(data, is_needed=False), file, keep_stream=keep_stream, as_json=as_json)


app.command("hub-config", **_describe("hub_config", "hub-config --public-url https://nb.example"))(print_hub_config)


@app.command("merge-users", **_describe("merge_users", "merge-users class-12 class-31"))
def merge_users(
    keep: Annotated[str, typer.Argument(help=get_text("arg_keep"))],
    drop: Annotated[str, typer.Argument(help=get_text("arg_drop"))],
    data: DataDir = None,
) -> None:
    from nbpulse import administration

    say(get_text("users_merged", count=administration.merge_people(_connect(data), keep, drop), keep=keep))


@app.command("rebuild-timeseries", **_describe("rebuild", "rebuild-timeseries --from 2026-11-01 --to 2026-12-01"))
def rebuild_timeseries(
    start: Annotated[datetime, typer.Option("--from", help=get_text("opt_from"))],
    end: Annotated[datetime, typer.Option("--to", help=get_text("opt_to"))],
    data: DataDir = None,
) -> None:
    from nbpulse import administration

    # A time without a zone is this machine's.
    window = start.astimezone(), end.astimezone()
    if window[0] >= window[1]:
        raise InvalidInput("NB-3081", start=window[0].isoformat(), end=window[1].isoformat())
    count, refused = administration.rebuild_timeseries(_connect(data), *window)
    say(get_text("rebuilt", count=count, refused=refused))


@tokens.command("list", **_describe("token_list", "token list"))
def list_tokens(data: DataDir = None, as_json: Json = False) -> None:
    from nbpulse import administration

    administration.show_tokens(_connect(data), as_json=as_json)


@tokens.command("revoke", **_describe("token_revoke", "token revoke 5f0c2a…"))
def revoke_token(token_id: Annotated[str, typer.Argument(metavar="ID")], data: DataDir = None) -> None:
    from nbpulse import administration

    administration.revoke_token(_connect(data), token_id)
    say(get_text("token_revoked"))


@letters.command("list", **_describe("letters_list", "dead-letters list"))
def list_letters(data: DataDir = None, as_json: Json = False) -> None:
    from nbpulse import administration

    administration.show_letters(_connect(data), as_json=as_json)


@letters.command("show", **_describe("letters_show", "dead-letters show 5f0c2a…"))
def show_letter(letter_id: Annotated[str, typer.Argument(metavar="ID")], data: DataDir = None) -> None:
    from nbpulse import administration

    administration.show_letter(_connect(data), letter_id)


@letters.command("replay", **_describe("letters_replay", "dead-letters replay all"))
def replay_letters(letter_id: Annotated[str, typer.Argument(metavar="ID|all")], data: DataDir = None) -> None:
    from nbpulse import administration

    say(get_text("letters_replayed", count=administration.replay_letters(_connect(data), letter_id)))


@letters.command("drop", **_describe("letters_drop", "dead-letters drop 5f0c2a…"))
def drop_letters(letter_id: Annotated[str, typer.Argument(metavar="ID|all")], data: DataDir = None) -> None:
    from nbpulse import administration

    say(get_text("letters_dropped", count=administration.drop_letters(_connect(data), letter_id)))


collecting.add_command(app, _connect)
accounts.add_commands(app, _connect)
enrolling.add_commands(app, _connect)
auditing.add_commands(app, _connect)
duties.add_commands(app, _connect)
sharding.add_commands(app, _connect)


def main() -> None:
    """The console script."""
    try:
        app()
    except NbpulseError as error:
        if os.environ.get("NBPULSE_DEBUG"):
            raise
        say(describe_error(error))
        sys.exit(1)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except Exception as error:
        if os.environ.get("NBPULSE_DEBUG"):
            raise
        say(describe_error(NbpulseError("NB-3099", detail=f"{type(error).__name__}: {error}")))
        sys.exit(1)
