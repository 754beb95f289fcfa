"""docs/capacity.md's generated parts, in both languages: what was measured, what the model says of it, and sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import sizing
from sizing import ACTIVE, PARTS, Line, Model, fit_model, plan_site

Language = Literal["en", "ja"]
Result = Mapping[str, Any]

_TEXTS: dict[str, dict[Language, str]] = {
    "unmeasured": {
        "en": "Not measured yet: `bench/capacity.py` and `bench/known_students.py` write what this is made of.",
        "ja": "まだ計測していません。`bench/capacity.py` と `bench/known_students.py` の結果から作られます。",
    },
    "made": {
        "en": "Made by `{command}` on {day}: {cpu}, {cores} cores shared by everything, {memory_gb} GB, PostgreSQL"
        " {postgresql}, Valkey {valkey}. Besides, {busy_min:.1f} to {busy_max:.1f} cores were busy with other work. In"
        " brackets: what the model says of the same point.",
        "ja": "`{command}` による計測({day}):{cpu}、{cores} コア(すべてで共用)、{memory_gb} GB、"
        "PostgreSQL {postgresql}、Valkey {valkey}。ほかの作業が使っていたのは {busy_min:.1f}~{busy_max:.1f} コア。"
        "括弧内は同じ点についてのモデルの値です。",
    },
    "rates": {
        "en": "Cores busy, one process of each, single posts, no board:",
        "ja": "使用中のコア数(各 1 プロセス、1 件ずつの送信、ボードなし):",
    },
    "boards": {
        "en": "Boards of one class of 200 at {rate} events/s:",
        "ja": "200 人の 1 授業(毎秒 {rate} 件)を見るボード:",
    },
    "backlog": {
        "en": "Events that wait in the stream while the worker stands still:",
        "ja": "ワーカーが止まっている間にストリームで待つイベント:",
    },
    "grid": {
        "en": "At {rate} single posts/s: processor seconds per 1,000 events, kB of WAL per event, rows; then stored/s,"
        " posts of 50 as fast as they are stored;"
        " several primaries stand beside a directory. On two cores more processes cannot store more a second:",
        "ja": "1 件ずつ毎秒 {rate} 件での 1,000 件あたりの CPU 秒、1 件あたりの WAL(kB)、行数。保存/秒は 50 件ずつを、"
        "保存できる最大の速さで送ったもの。"
        "複数のプライマリには、別にディレクトリがあります。2 コアではプロセスを増やしても毎秒の件数は増えません:",
    },
    "disk": {
        "en": "The ledger on disk with its indexes, one database:",
        "ja": "ディスク上の台帳(索引を含む)、データベース 1 つ:",
    },
    "model": {
        "en": "The lines, y = base + slope × x, by least squares:",
        "ja": "直線 y = 切片 + 傾き × x(最小二乗法):",
    },
    "estimate": {
        "en": "**Estimates**, not measurements. Cores: at the peak, each filled to {busy:.0%}. Beyond: the peak in"
        " multiples of the largest rate that was measured ({x_max:,.0f} events/s).",
        "ja": "**推定値**であり、計測値ではありません。コア数はピーク時、使用率 {busy:.0%} まで。「計測範囲比」は、"
        "計測した最大の速さ(毎秒 {x_max:,.0f} 件)に対するピークの倍率です。",
    },
}
_PART_NAMES = {"api": "API", "worker": "worker", "postgresql": "PostgreSQL", "valkey": "Valkey"}
_HEADS: dict[str, dict[Language, str]] = {
    "rates": {
        "en": "events/s | API | worker | PostgreSQL | Valkey | elsewhere",
        "ja": "件/秒 | API | ワーカー | PostgreSQL | Valkey | ほか",
    },
    "boards": {
        "en": "boards | API, cores | API, MB | frames/s, all boards",
        "ja": "ボード数 | API、コア | API、MB | フレーム/秒(全ボード)",
    },
    "backlog": {
        "en": "events | memory, MB | log on disk, MB | process (PSS), MB",
        "ja": "件数 | メモリ、MB | ディスク上のログ、MB | プロセス(PSS)、MB",
    },
    "grid": {
        "en": "primaries | workers | APIs | stored/s | API | worker | directory | shards | Valkey | WAL, directory"
        " | WAL, shard | least and most rows of a primary",
        "ja": "プライマリ | ワーカー | API | 保存/秒 | API | ワーカー | ディレクトリ | シャード | Valkey"
        " | WAL、ディレクトリ | WAL、シャード | プライマリの最小・最大行数",
    },
    "disk": {"en": "rows | MB", "ja": "行数 | MB"},
    "model": {
        "en": "y | x | base | slope | largest residual | measured up to",
        "ja": "y | x | 切片 | 傾き | 最大の残差 | 計測した最大の x",
    },
    "factors": {"en": "taken as it was measured (medians) | figure", "ja": "計測値をそのまま使うもの(中央値)| 値"},
    "sizes": {
        "en": "students | at once | events/s, mean and peak | primaries | APIs | workers | cores: API, worker,"
        " PostgreSQL, Valkey | memory | disk, {days} days kept | directory: cores, WAL at the peak | beyond",
        "ja": "学生数 | 同時 | 件/秒、平均とピーク | プライマリ | API | ワーカー | コア:API、ワーカー、"
        "PostgreSQL、Valkey | メモリ | ディスク({days} 日分)| ディレクトリ:コア、ピーク時の WAL | 計測範囲比",
    },
}
_LINES: dict[str, dict[Language, str]] = {
    "cores": {"en": "{part}: cores | events/s", "ja": "{part}:コア | 件/秒"},
    "board_cores": {"en": "API: cores | boards of a class", "ja": "API:コア | 1 授業のボード数"},
    "board_mb": {"en": "API: MB | boards of a class", "ja": "API:MB | 1 授業のボード数"},
    "backlog_bytes": {"en": "Valkey: bytes | waiting events", "ja": "Valkey:バイト | 待っているイベント"},
    "ledger_bytes": {"en": "ledger on disk: bytes | rows", "ja": "ディスク上の台帳:バイト | 行数"},
    "series_bytes": {
        "en": "time series on disk: bytes | runs ([both stores](PERFORMANCE.md#the-two-series-stores))",
        "ja": "ディスク上の時系列:バイト | 実行数([両ストア](PERFORMANCE.ja.md#2-つの時系列ストア))",
    },
}
_FACTORS: dict[str, dict[Language, str]] = {
    "watched_class_cores": {"en": "API: cores for a class's first board", "ja": "API:授業の最初のボードのコア"},
    "wal_bytes": {"en": "one database: WAL bytes per event", "ja": "データベース 1 つ:1 件あたりの WAL(バイト)"},
    "worker_factor": {
        "en": "several primaries: worker's time per event, × that with one",
        "ja": "複数のプライマリ:1 件あたりのワーカーの時間(1 つのときの倍数)",
    },
    "postgresql_factor": {
        "en": "several primaries: all databases' time per event, × that with one",
        "ja": "複数のプライマリ:1 件あたりの全データベースの時間(1 つのときの倍数)",
    },
    "directory_share": {"en": "of it the directory's share", "ja": "そのうちディレクトリの割合"},
    "directory_wal_bytes": {
        "en": "several primaries: the directory's WAL bytes per event",
        "ja": "複数のプライマリ:1 件あたりのディレクトリの WAL(バイト)",
    },
    "shard_wal_bytes": {
        "en": "several primaries: WAL bytes per event in its shard's database",
        "ja": "複数のプライマリ:1 件あたりのシャード側の WAL(バイト)",
    },
    "student_mb": {"en": "all parts: MB for 100,000 known students", "ja": "全体:登録済みの学生 10 万人あたりの MB"},
    "notebook_bytes": {
        "en": "on disk: bytes for one student's one notebook, beside events and series",
        "ja": "ディスク:学生 1 人のノートブック 1 つあたりのバイト(イベントと時系列を除く)",
    },
}


def _write_table(heads: str, rows: Sequence[Sequence[str]]) -> list[str]:
    count = heads.count("|") + 1
    return [f"| {heads} |", f"|{'---:|' * count}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _both(measured: float, line: Line, x: float, digits: int = 3, scale: float = 1) -> str:
    return f"{measured / scale:,.{digits}f} ({line.at(x) / scale:,.{digits}f})"


def _read(results: Path) -> tuple[Result, Model] | None:
    """None where something has not been measured yet."""
    paths = [results / f"{name}.json" for name in ("capacity", "timeseries", "known_students")]
    if not all(path.exists() for path in paths):
        return None
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return (found[0], fit_model(*found)) if {"rates", "boards", "backlog", "grid"} <= set(found[0]) else None


def compose_points(results: Path, language: Language) -> str:
    """Every measured point, with the model's value in brackets."""
    if (read := _read(results)) is None:
        return _TEXTS["unmeasured"][language]
    found, model = read
    busy = [one["cores_busy_elsewhere"] for part in ("rates", "boards", "grid") for one in found[part]]
    made = _TEXTS["made"][language].format(
        command=found["command"],
        day=found["measured_at"][:10],
        busy_min=min(busy),
        busy_max=max(busy),
        **found["machine"],
    )
    rates = [
        [
            f"{one['events_per_s']:,}",
            *(_both(sizing.sum_part(one["cores"], part), model.cores[part], one["events_per_s"]) for part in PARTS),
            f"{one['cores_busy_elsewhere']:.1f}",
        ]
        for one in sorted(found["rates"], key=lambda one: float(one["events_per_s"]))
    ]
    boards = []
    for one in sorted(found["boards"], key=lambda one: int(one["boards"])):
        count, cores, size = one["boards"], one["cores"]["api"], one["pss_mb"]["api"]
        boards.append(
            [f"{count}", _both(cores, model.board_cores, count), _both(size, model.board_mb, count, 1)]
            if count
            else ["0", f"{cores:.3f}", f"{size:.1f}"]
        )
        boards[-1].append(f"{one['frames_per_s']:,.0f}")
    backlog = [
        [
            f"{one['events']:,}",
            _both(one["memory_bytes"], model.backlog_bytes, one["events"], 1, 1e6),
            f"{one['log_bytes'] / 1e6:,.1f}",
            f"{one['pss_mb']:,.1f}",
        ]
        for one in sorted(found["backlog"], key=lambda one: int(one["events"]))
    ]
    grid = [
        _describe_point(one)
        for one in sorted(found["grid"], key=lambda one: (one["primaries"], one["workers"], one["apis"]))
    ]
    disk = [
        [f"{rows:,.0f}", _both(size, model.ledger_bytes, rows, 1, 1e6)]
        for rows, size in sorted(sizing.list_disk_points(found["grid"]))
    ]
    lines = [made, ""]
    for name, rows in (("rates", rates), ("boards", boards), ("backlog", backlog), ("grid", grid), ("disk", disk)):
        rate = found[name][0]["events_per_s"] if name in ("boards", "grid") else 0
        lines += [_TEXTS[name][language].format(rate=rate), "", *_write_table(_HEADS[name][language], rows)]
    return "\n".join(lines).rstrip()


def _describe_point(one: Result) -> list[str]:
    directory, shards = sizing.split_postgresql(one)
    wal, cpu = sizing.find_wal(one), one["cpu_us_per_event"]
    rows = [found["rows"] for name, found in one["databases"].items() if one["primaries"] == 1 or name != "main"]
    times = [sizing.sum_part(cpu, "api"), sizing.sum_part(cpu, "worker"), directory, shards, cpu["valkey"]]
    return [
        *(f"{one[name]}" for name in ("primaries", "workers", "apis")),
        f"{one['stored_per_s']:,}",
        *(f"{time_us / 1000:.3f}" if time_us else "-" for time_us in times),
        f"{wal['main'] / 1000:.2f}",
        f"{wal['shard'] / 1000:.2f}" if "shard" in wal else "-",
        f"{min(rows):,} / {max(rows):,}",
    ]


def _write_number(value: float) -> str:
    """Four digits that count, without powers of ten."""
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.6f}".rstrip("0").rstrip(".")


def compose_model(results: Path, language: Language) -> str:
    """The fitted lines, and the table of sizes made by them."""
    if (read := _read(results)) is None:
        return _TEXTS["unmeasured"][language]
    _, model = read
    lines = [_TEXTS["model"][language], ""]
    named = [
        *((_LINES["cores"][language].format(part=_PART_NAMES[part]), model.cores[part]) for part in PARTS),
        *((text[language], getattr(model, name)) for name, text in _LINES.items() if name != "cores"),
    ]
    rows = [
        [*name.split(" | "), *(_write_number(one) for one in (line.base, line.slope, line.residual_max, line.x_max))]
        for name, line in named
    ]
    lines += _write_table(_HEADS["model"][language], rows)
    values = {name: getattr(model, name, None) or getattr(model.several, name, 0) for name in _FACTORS}
    values["student_mb"] = model.student_mb * 100_000
    rows = [[text[language], _write_number(values[name])] for name, text in _FACTORS.items()]
    lines += _write_table(_HEADS["factors"][language], rows)
    x_max = model.cores["api"].x_max
    lines += [_TEXTS["estimate"][language].format(busy=sizing.BUSY_MAX, x_max=x_max), ""]
    plans = [plan_site(model, students, active) for students, active in ACTIVE.items()]
    rows = [
        [
            f"{plan.students:,}",
            f"{plan.active:,}",
            f"{plan.mean_per_s:,.0f}, {plan.peak_per_s:,.0f}",
            f"{plan.primaries}",
            f"{plan.apis}",
            f"{plan.workers}",
            ", ".join(f"{plan.cores[part]:,.1f}" for part in PARTS),
            f"{plan.memory_gb:,.1f} GB",
            f"{plan.disk_gb:,.0f} GB",
            f"{plan.directory_cores:,.1f}, {plan.directory_wal_mb_per_s:,.1f} MB/s",
            f"{plan.beyond:,.1f}",
        ]
        for plan in plans
    ]
    lines += _write_table(_HEADS["sizes"][language].format(days=sizing.KEPT_DAYS), rows)
    return "\n".join(lines).rstrip()
