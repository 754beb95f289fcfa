"""Results as text for docs/PERFORMANCE.md: one function for each bench that is not beside the specification's flow."""

from __future__ import annotations

import re
from typing import Any

Result = dict[str, Any]

_SCAN = re.compile(r"(?:Index (?:Only )?Scan(?: Backward)? using|Bitmap Index Scan on) (\w+)")
_BUFFERS = re.compile(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?")
_READS = (
    *("kB", "cold, first answer", "cold p95", "warm p95", "20 people p95", "20 people, cold p95", "no two alike p95"),
    *("one reader p50", "one reader p95", "cores busy elsewhere"),
)
_SHOWN_PLANS = ("sessions", "slow-cells")
_LINE_MAX = 170


def compose_api_reads(result: Result) -> str:
    """Every read route: cold, warm and alone, and what its plan read."""
    school, aim = result["school"], result["aim_p95_ms"]
    lines = [
        _describe(result)
        + f" {school['ledger_rows']:,} ledger rows of {school['courses']} courses in {school['weeks']} weeks"
        f" ({school['database_mb'] / 1000:.1f} GB); of the course asked for {school['ledger_rows_of_course']:,}, of its"
        f" class day {school['ledger_rows_of_course_last_day']:,}. Milliseconds; {result['readers']} readers without a"
        f" pause, so p95 of the shared answers is mostly HTTP. Aim: p95 < {aim:g} ms. Load average at the end:"
        f" {result['load_average'][2]:.1f}.",
        "",
        f"| question | {' | '.join(_READS)} |",
        f"|---|{'---:|' * len(_READS)}",
    ]
    for name, kinds in result["routes"].items():
        cells = [
            f"{kinds['warm']['body_bytes'] / 1000:,.1f}",
            f"{kinds['cold']['first_ms']:,.0f}",
            *(_judge(kinds[kind]["p95_ms"], aim) for kind in ("cold", "warm", "people", "cold_people")),
            f"{kinds['unequal']['p95_ms']:,.0f}",
            f"{kinds['alone']['p50_ms']:,.1f}",
            f"{kinds['alone']['p95_ms']:,.1f}",
            f"{kinds['alone']['cores_busy_elsewhere']:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_compose_plans(result["plans"])])


def _judge(value: float, aim: float) -> str:
    return f"{value:,.1f}" + (" **missed**" if value >= aim else "")


def _compose_plans(plans: dict[str, list[str]]) -> list[str]:
    lines = [
        "What PostgreSQL ran for one answer each (auto_explain, warm, with the cost of watching):",
        "",
        "| question | statements | ms | pages | indexes |",
        "|---|---:|---:|---:|---|",
    ]
    for name, texts in plans.items():
        took = sum(float(text.split(" ", 1)[0]) for text in texts)
        pages = sum(int(hit or 0) + int(read or 0) for text in texts for hit, read in _BUFFERS.findall(text)[:1])
        indexes = sorted({re.sub(r"_\d{4}_\d\d_", "_*_", one) for text in texts for one in _SCAN.findall(text)})
        lines.append(f"| {name} | {len(texts)} | {took:,.1f} | {pages:,} | {', '.join(indexes)} |")
    for name in _SHOWN_PLANS:
        for text in plans.get(name, []):
            if "Index Cond" in text:
                lines += [
                    "",
                    f"<details><summary>The plan of {name}</summary>",
                    "",
                    "```",
                    *_shorten(text),
                    "```",
                    "",
                    "</details>",
                ]
    return lines


def _shorten(plan: str) -> list[str]:
    """The nodes and their conditions; partitions without rows are pruned or never looked into."""
    wanted = ("->", "Index Cond", "Filter", "Limit", "Aggregate", "CTE")
    return [line.strip("\t").rstrip()[:_LINE_MAX] for line in plan.splitlines() if line.strip().startswith(wanted)]


def compose_capture_cost(result: Result) -> str:
    """What each run costs the student, beside the aims; then with and without, as they took turns."""
    servers, machine = result["jupyter_servers"], result["machine"]
    made = (
        f"Made by `{result['command']}` on {result['measured_at'][:10]}: {machine['cpu']}, {machine['cores']} cores,",
        f"{machine['system']}, Python {machine['python']}. {servers['runs']:,} runs with and as many without capture,",
        f"in turns, in {servers['round_trip_ms']['bare']['rounds']} rounds; percentiles are those of the median round.",
        f"Cores busy elsewhere before: {result['cores_busy_elsewhere']:.1f}.",
    )
    lines = [" ".join(made), "", "| added by capture | figure | aim |", "|---|---:|---:|"]
    for one in result["measures"]:
        missed = "" if one["met"] else " **missed**"
        lines.append(f"| {one['what']} | {one['figure']:,.2f} {one['unit']} | < {one['aim']:g}{missed} |")
    lines += ["", "| beside | with | without |", "|---|---:|---:|"]
    cpu, trips = servers["server_cpu_per_run_ms"], servers["round_trip_ms"]
    busy = servers["with_all_cores_busy"]["server_cpu_per_run_ms"]
    floods = result["print_flood_10000_lines"], servers["print_flood_10000_lines"]
    beside = [
        ("server's CPU per run", cpu["captured"], cpu["bare"]),
        ("the same, all cores busy", busy["captured"], busy["bare"]),
        ("from request to reply through a server, p50", trips["captured"]["p50"], trips["bare"]["p50"]),
        ("the same, p99", trips["captured"]["p99"], trips["bare"]["p99"]),
        ("start of a kernel", result["kernel_start"]["captured_ms"], result["kernel_start"]["bare_ms"]),
        ("10,000 printed lines, kernel by itself", floods[0]["captured_ms"], floods[0]["bare_ms"]),
        ("the same through a server", floods[1]["captured_ms"], floods[1]["bare_ms"]),
    ]
    lines += [f"| {what} | {with_ms:,.2f} ms | {without_ms:,.2f} ms |" for what, with_ms, without_ms in beside]
    alone, observed = result["runs"]["both_callbacks_cpu_ms"], servers["observed_kernel_both_callbacks_cpu_ms"]
    said = (
        f"Processor time of both callbacks of a run: {alone['p50']:.2f} ms (p99 {alone['p99']:.2f}) in a kernel by",
        f"itself, {observed['p50']:.2f} ms (p99 {observed['p99']:.2f}) in one that a server observes.",
    )
    return "\n".join([*lines, "", " ".join(said)])


def compose_influx_outage(result: Result) -> str:
    """Event to frame before, during and after; the debt."""
    lines = [
        _describe(result)
        + f" {result['rate_per_s']:g} events/s, {result['seconds']:g} s each, {result['viewers']} boards, InfluxDB"
        f" {result['influxdb']}.",
        "",
        "| InfluxDB | event to frame p50 | p99 | median p99 of six slices | largest | cores busy elsewhere |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, title in (("before", "there"), ("during", "killed"), ("after", "back, debt being paid")):
        one = result[name]
        times = " | ".join(f"{one[key]:,.0f} ms" for key in ("p50_ms", "p99_ms", "p99_median_slice_ms", "max_ms"))
        lines.append(f"| {title} | {times} | {one['cores_busy_elsewhere']:.1f} |")
    verdict = "" if result["p99_ratio"] <= result["ratio_max"] else " **missed**"
    said = (
        f"p99 while it was away: {result['p99_ratio']:.2f} times that before; of the slices' median",
        f"{result['p99_median_slice_ratio']:.2f} times (aim ≤ {result['ratio_max']:g}{verdict}).",
        f"Owed at most {result['debt_batches_max']:,} batches, all paid {result['debt_paid_after_s']:g} s after it was",
        f"back (the load goes on for {result['seconds'] + 2:g} s of it). {result['ledger_runs']:,} runs in the ledger,",
        f"{result['influx_points']:,} points in InfluxDB, equal for each of {result['students']} students;",
        f"{result['refused']:,} events refused, {result['lost_viewers']} boards lost.",
    )
    return "\n".join([*lines, "", " ".join(said)])


_CHANGES = {
    "add": "one more",
    "kill": "kill -9",
    "remove": "SIGTERM",
    "stop": "SIGSTOP",
}


def compose_processes(result: Result) -> str:
    """How long events waited when workers changed, and boards were away in a rolling restart."""
    workers = result["workers"]
    lines = [
        _describe(result) + " Cores busy: with everything that was measured.",
        "",
        "| what | how often | longest | median | aim | cores busy |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, waited_s in workers["unread_max_s"].items():
        missed = "" if waited_s <= workers["unread_aim_s"] else " **missed**"
        lines.append(
            f"| three workers, {_CHANGES[name]}: an event's wait for its storing | {workers['rounds']}"
            f" | {waited_s:.1f} s | | ≤ {workers['unread_aim_s']:g} s{missed} | {workers['cores_busy']:.1f} |"
        )
    for name, title in (("nginx", "nginx"), ("haproxy", "HAProxy")):
        one = result[name]
        missed = "" if one["away_max_s"] <= one["away_aim_s"] else " **missed**"
        lines.append(
            f"| rolling restart behind {title}: a board's absence | {one['boards']} | {one['away_max_s']:.1f} s"
            f" | {one['away_median_s']:.1f} s | ≤ {one['away_aim_s']:g} s{missed} | {one['cores_busy']:.1f} |"
        )
    return "\n".join(lines)


def compose_replica_promotion(result: Result) -> str:
    """What was acknowledged and lost over all rounds, with and without a synchronous replica."""
    lines = [
        _describe(result),
        "",
        "| the primary acknowledges | rounds | events acknowledged | lost | wrong once delivered again | promotion |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, title in (("synchronous", "when the replica has it on disk"), ("control", "alone (control)")):
        one = result[name]
        figures = " | ".join(f"{one[key]:,}" for key in ("rounds", "acknowledged", "lost", "wrong"))
        lines.append(f"| {title} | {figures} | {one['promotion_s']:.2f} s |")
    bound = 100 * 3 / max(1, result["synchronous"]["acknowledged"])
    said = f"None lost of so many leaves, at 95 %, at most {bound:.3f} % that could be (rule of three)."
    return "\n".join([*lines, *(["", said] if not result["synchronous"]["lost"] else [])])


_ATTACKS = {
    "none": "nobody attacks",
    "endless_body": "a body of {size:,} bytes, to three routes at once",
    "gzip_bomb": "20 bodies at once that inflate to {size:,} bytes",
    "batch": "batches of {size:,} events and of 300,000, in turn",
    "depth": "arrays in arrays, {size:,} deep",
    "slow_heads": "{size:,} connections that send a head, a line a second",
    "slow_bodies": "{size:,} connections that send a body, a byte a second",
    "idle_sockets": "{size:,} connections that say nothing",
    "idle_websockets": "{size:,} WebSockets that do not say whose they are",
    "bad_tokens": "{size:,} tokens that do not work",
}


def compose_abuse(result: Result) -> str:
    """What each attack cost: memory, and the way of the class's events to the boards."""
    lines = [
        _describe(result)
        + f" A class of {result['rate_per_s']:g} events/s on {result['viewers']} boards; the attack is a process of its"
        f" own on the same cores. Aims: the API's memory grows by less than {result['growth_max_mb']:g} MB, an event is"
        f" on the boards within {result['frame_max_ms']:,.0f} ms.",
        "",
        "| attack | answered | memory | event to frame p50 | p99 | largest |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, one in result["attacks"].items():
        answers = ", ".join(f"{answer} × {count:,}" for answer, count in one["answers"].items() if count)
        memory = f"+{one['growth_mb']:.1f} MB" + (" **missed**" if one["growth_mb"] >= result["growth_max_mb"] else "")
        largest = f"{one['max_ms']:,.0f} ms" + (" **missed**" if one["max_ms"] >= result["frame_max_ms"] else "")
        times = f"{one['p50_ms']:,.0f} ms | {one['p99_ms']:,.0f} ms | {largest}"
        lines.append(f"| {_ATTACKS[name].format(size=one['size'])} | {answers or '-'} | {memory} | {times} |")
    said = (
        f"The API had {result['attacks']['none']['rss_before_mb']:.0f} MB before.",
        f"{result['lost_viewers']} boards lost,",
        f"{result['refused']} of the class's events refused.",
    )
    return "\n".join([*lines, "", " ".join(said)])


_AIMS = {200: (100, 25, 400, 100), 1000: (300, 0, 0, 0)}
"""By students: main-thread ms/s, frame p95, event to pixel p95, snapshot p95, in ms; 0 for none."""


def compose_board_speed(result: Result) -> str:
    """What the live page costs a browser, and how soon it shows what happened."""
    lines = [
        _describe(result)
        + " Chromium, without a window, draws by software on the same cores; 100 squares change a second. Milliseconds;"
        " of the main thread per second. Pixel: from when an event was due; load: load average at the end.",
        "",
        "| class | main thread | its CPU | script, style, layout | frame p95 | pixel p50 | p95 | snapshot p95 | load |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in result["classes"].items():
        figures = one["main_thread_ms_per_s"], one["frame"]["p95_ms"], one["pixel"]["p95_ms"], one["snapshot"]["p95_ms"]
        thread, frame, pixel, snapshot = (
            f"{figure:g}" + (f" (≤ {aim}{' **missed**' if figure > aim else ''})" if aim else "")
            for figure, aim in zip(figures, _AIMS[one["students"]], strict=True)
        )
        parts = ", ".join(f"{one[f'{part}_ms_per_s']:g}" for part in ("script", "style", "layout"))
        lines.append(
            f"| {name} | {thread} | {one['main_thread_cpu_ms_per_s']:g} | {parts} | {frame} |"
            f" {one['pixel']['p50_ms']:g} | {pixel} | {snapshot} | {one['load_average']:.1f} |"
        )
    return "\n".join(lines)


def compose_known_students(result: Result) -> str:
    """The same class alone and beside a school, each figure with its ratio."""
    alone, beside = result["schools"].values()
    lines = [
        _describe(result)
        + f" Medians of {result['passes']} passes' p95, the two systems in turn; {alone['known_students']:,} and"
        f" {beside['known_students']:,} students known, {alone['ledger_rows']:,} and {beside['ledger_rows']:,} ledger"
        " rows"
        f" ({alone['database_mb'] / 1000:.2f} and {beside['database_mb'] / 1000:.2f} GB), the class alike:"
        f" {result['rate_per_s']} events/s while the first two are measured. Aim: ratio < {result['ratio_max']:g}. CPU:"
        f" of API and PostgreSQL for an answer. Load average at the end: {result['load_average'][0]:.1f}.",
        "",
        "| p95 | alone | beside others | ratio | CPU, alone | beside others | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in result["figures"].items():
        verdict = " **missed**" if one["ratio"] >= result["ratio_max"] else ""
        cpu = "| | |"
        if "cpu_ratio" in one:
            cpu = f"{one['alone_cpu_ms']:,.1f} ms | {one['beside_cpu_ms']:,.1f} ms | {one['cpu_ratio']:.2f} |"
        lines.append(
            f"| {name} | {one['alone_ms']:,.1f} ms | {one['beside_ms']:,.1f} ms | {one['ratio']:.2f}{verdict} | {cpu}"
        )
    sizes = [", ".join(f"{part} {mb:g}" for part, mb in one["pss_mb"].items()) for one in (alone, beside)]
    return "\n".join([*lines, "", f"PSS in MB afterwards: alone {sizes[0]}; beside others {sizes[1]}."])


_VERSION_PARTS = {"all": "all processes, µs per event", "stored_per_s": "stored, events/s"}
_VERSION_KINDS = {"single": "single posts", "batch": "posts of 50"}


def compose_versions(result: Result) -> str:
    """What an event costs in two versions, round by round side by side."""
    rounds = result["rounds"]
    busy = [one["cores_busy_elsewhere"] for found in rounds.values() for one in found]
    lines = [
        _describe(result)
        + f" Before: {result['other']}. Medians of {len(rounds['single'])} rounds; of the ratio (now : before) the"
        f" rounds' median, least and largest. Elsewhere {min(busy):.1f} to {max(busy):.1f} cores were busy.",
        "",
        "| figure | before | now | ratio |",
        "|---|---:|---:|---:|",
    ]
    for kind, found in result["weighed"].items():
        for name, one in found.items():
            what = _VERSION_PARTS.get(name, f"{name}, µs per event")
            lines.append(
                f"| {_VERSION_KINDS[kind]}: {what} | {one['other']:,.0f} | {one['this']:,.0f}"
                f" | {one['ratio']:.2f} ({one['ratio_min']:.2f} to {one['ratio_max']:.2f}) |"
            )
    return "\n".join(lines)


def compose_timeseries(result: Result) -> str:
    """Both series stores side by side."""
    lines = [_describe(result) + f" {result['distribution']}", ""]
    lines += ["| points | store | writes/s | disk | query 1 | query 1, raw | query 2 | query 2, raw |"]
    lines += ["|---:|---|---:|---:|---:|---:|---:|---:|"]
    for size in result["sizes"]:
        for store, one in size["stores"].items():
            times = [_show_ms(one.get(key)) for key in ("query_1_ms", "query_1_raw_ms", "query_2_ms", "query_2_raw_ms")]
            row = [f"{size['points']:,}", store, f"{one['writes_per_s']:,.0f}", f"{one['disk_mb']:,.0f} MB", *times]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _show_ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def _describe(result: Result) -> str:
    machine = result["machine"]
    return (
        f"Made by `{result['command']}` on {result['measured_at'][:10]}: {machine['cpu']}, {machine['cores']} cores"
        f" shared by everything, {machine['memory_gb']} GB, PostgreSQL {machine['postgresql']}."
    )
