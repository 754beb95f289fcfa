// @ts-check
/** The room: where each team or seat is, and how those who sit there stand, live. */
import { ApiError, fetchMap } from "../api.js";
import { Connection } from "../connection.js";
import { html, useEffect, useRef, useState } from "../preact.js";
import { formatWait, t } from "../i18n.js";
import { clockOffsetMs, hasShortcuts, isNamed, labelOf, now, toggleNames } from "../store.js";
import { Glyph } from "./glyph.js";
import { MapEditor } from "./map_edit.js";
import { CoursePage, Problem, Refused } from "./pages.js";
import { findElsewhere, groupRows, keyOf, readSeat, worstStatus } from "./places.js";

/**
 * @typedef {import("../state.js").Row} Row
 * @typedef {import("../state.js").State} State
 * @typedef {{version: number, places: import("./places.js").Place[], picture: ?[number, number], may_change: boolean}} RoomMap
 */

const LOOK_AGAIN_MS = 30_000; // another of the staff may have changed it

/** @param {{courseId: string, title: string}} props */
export function CourseMap({ courseId, title }) {
  const [room, setRoom] = useState(/** @type {?RoomMap} */ (null));
  const [state, setState] = useState(/** @type {?State} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const [isEditing, setEditing] = useState(false);
  const [who, setWho] = useState(/** @type {?{name: string, key: string}} */ (null));
  useEffect(() => {
    const line = new Connection(courseId, {
      onState: (news) => {
        clockOffsetMs.value = line.clockOffsetMs;
        setState(news);
      },
      onLink: (link) => setProblem(link.problem),
      onRefused: setProblem,
    });
    line.start();
    return () => line.stop();
  }, [courseId]);
  useEffect(() => {
    const read = () => fetchMap(courseId).then(setRoom, (error) => (error instanceof ApiError ? setProblem(error) : Promise.reject(error)));
    if (isEditing) return undefined;
    void read();
    const timer = setInterval(read, LOOK_AGAIN_MS);
    return () => clearInterval(timer);
  }, [courseId, isEditing]);
  useEffect(listenForNames, []);
  const page = { name: "map", title: t("map.title"), courseId, course: title };
  if (!room || !state) {
    if (problem && [401, 403, 404].includes(problem.status)) return html`<${Refused} error=${problem} />`;
    return html`<${CoursePage} ...${page}>${problem ? html`<${Problem} error=${problem} />` : html`<p class="muted">${t("link.connecting")}</p>`}<//>`;
  }
  const rows = state.rows.filter(Boolean);
  const order = Object.keys(state.counts); // as the server ranks them
  const done = (/** @type {?RoomMap} */ saved) => {
    if (saved) setRoom(saved);
    setEditing(false);
  };
  if (isEditing) return html`<${CoursePage} ...${page}><${MapEditor} courseId=${courseId} room=${room} rows=${rows} done=${done} /><//>`;
  return html`<${CoursePage} ...${page}>
    ${problem && html`<${Problem} error=${problem} />`}
    <div class="ends">
      <button class="toggle" data-action="names" aria-pressed=${isNamed.value} onClick=${toggleNames}>${t(isNamed.value ? "names.hide" : "names.show")}</button>
      ${room.may_change && html`<button data-action="edit-map" onClick=${() => setEditing(true)}>${t(room.version ? "map.edit" : "map.make")}</button>`}
    </div>
    ${rows.length === 0 && html`<p class="muted" data-empty>${t("map.nobody")}</p>`}
    ${room.places.length > 0 || room.picture
      ? html`<${Room} courseId=${courseId} room=${room} rows=${rows} order=${order} open=${setWho} />`
      : html`<${SeatGrid} rows=${rows} order=${order} open=${setWho} />`}
    <${Legend} order=${order} />
    <${Who} who=${who} rows=${rows} courseId=${courseId} close=${() => setWho(null)} />
  <//>`;
}

/** Whose places are on the map, and below it everybody else. @param {{courseId: string, room: RoomMap, rows: Row[], order: string[], open: any}} props */
function Room({ courseId, room, rows, order, open }) {
  const groups = { team: groupRows(rows, "team"), seat: groupRows(rows, "seat") };
  return html`<${Ground} courseId=${courseId} room=${room}>
      ${room.places.map((place) => html`<${Spot} key=${keyOf(place)} ...${place} rows=${groups[place.kind].get(place.name) ?? []} order=${order} open=${open} at=${place} />`)}
    <//>
    <${Elsewhere} rows=${findElsewhere(rows, room.places)} order=${order} open=${open} title="map.elsewhere" />`;
}

/** The picture, or a plain floor, and what stands on it. @param {{courseId: string, room: RoomMap, children: any, onGround?: any}} props */
export function Ground({ courseId, room, children, onGround }) {
  const [width, height] = room.picture ?? [16, 9];
  return html`<div class="room-map" data-picture=${Boolean(room.picture)}><div class="ground" ref=${onGround} style=${{ aspectRatio: `${width} / ${height}`, width: `min(100%, ${Math.round((76 * width) / height)}vh)` }}>
    ${room.picture && html`<img src=${`/api/v1/courses/${encodeURIComponent(courseId)}/map/picture?v=${room.version}`} alt=${t("map.picture")} draggable=${false} />`}
    ${children}
  </div></div>`;
}

/** One team or seat. @param {{kind: string, name: string, rows: Row[], order: string[], open: any, at?: {x: number, y: number}}} props */
function Spot({ kind, name, rows, order, open, at }) {
  const status = worstStatus(rows, order);
  const count = status ? rows.filter((row) => row.st === status).length : 0;
  const words = status ? t("map.spot", { name, status: t(`status.${status}`), n: count, total: rows.length }) : t("map.spot_empty", { name });
  return html`<button class="spot" data-spot=${`${kind} ${name}`} data-status=${status ?? "nobody"} aria-label=${words} title=${words}
    style=${at && { left: `${at.x}%`, top: `${at.y}%` }} onClick=${() => open({ name, key: `${kind} ${name}` })}>
    ${status && html`<${Glyph} kind=${status} />`}<bdi>${name}</bdi>${rows.length > 1 && html`<small aria-hidden="true">${count}/${rows.length}</small>`}
  </button>`;
}

/** Without a map: seats named like A-1 in their rows, teams where there are none. @param {{rows: Row[], order: string[], open: any}} props */
function SeatGrid({ rows, order, open }) {
  const seats = groupRows(rows, "seat");
  const read = [...seats].map(([name, group]) => ({ name, group, spot: readSeat(name) }));
  const seated = read.filter((one) => one.spot);
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const lines = [...new Set(seated.map((one) => one.spot?.row ?? ""))].sort(compare);
  const columns = [...new Set(seated.map((one) => one.spot?.column ?? 0))].sort((a, b) => a - b);
  const names = new Set(seated.map((one) => one.name));
  if (rows.length > 0 && seats.size === 0 && groupRows(rows, "team").size === 0) return html`<p data-empty>${t("map.no_places")}</p>`;
  return html`${lines.length > 0 && html`<div class="room-map"><div class="seats" data-seats style=${{ gridTemplateColumns: `repeat(${columns.length}, minmax(4.6em, 1fr))` }}>
      ${seated.map(({ name, group, spot }) => html`<div key=${name} style=${{ gridRow: lines.indexOf(spot?.row ?? "") + 1, gridColumn: columns.indexOf(spot?.column ?? 0) + 1 }}>
        <${Spot} kind="seat" name=${name} rows=${group} order=${order} open=${open} /></div>`)}
    </div></div>`}
    <${Elsewhere} rows=${rows.filter((row) => !names.has(row.seat ?? ""))} order=${order} open=${open} title=${lines.length > 0 ? "map.elsewhere" : "map.teams"} />`;
}

/** Those who are on no map, by team, by seat, or all together: nobody is hidden. @param {{rows: Row[], order: string[], open: any, title: string}} props */
function Elsewhere({ rows, order, open, title }) {
  if (rows.length === 0) return null;
  const teams = groupRows(rows, "team");
  const seats = groupRows(rows.filter((row) => !row.team), "seat");
  const others = rows.filter((row) => !row.team && !row.seat);
  const spot = (/** @type {string} */ kind, /** @type {string} */ name, /** @type {Row[]} */ group) =>
    html`<li key=${`${kind} ${name}`}><${Spot} kind=${kind} name=${name} rows=${group} order=${order} open=${open} /></li>`;
  return html`<section aria-labelledby="elsewhere-title"><h2 id="elsewhere-title">${t(title)}</h2><ul class="spots" data-elsewhere>
    ${[...teams].map(([name, group]) => spot("team", name, group))}${[...seats].map(([name, group]) => spot("seat", name, group))}
    ${others.length > 0 && spot("none", t("map.no_seat"), others)}</ul></section>`;
}

/** @param {{order: string[]}} props */
function Legend({ order }) {
  return html`<p class="legend map-legend">${order.map((status) => html`<span key=${status}><${Glyph} kind=${status} /> ${t(`status.${status}`)}</span>`)}</p>`;
}

/** Who sits there. @param {{who: ?{name: string, key: string}, rows: Row[], courseId: string, close: () => void}} props */
function Who({ who, rows, courseId, close }) {
  const dialog = useRef(/** @type {any} */ (null));
  useEffect(() => (who ? dialog.current.showModal() : dialog.current.close()), [who]);
  const [kind, name] = [who?.key.slice(0, 4), who?.name];
  const there = rows.filter((row) => (kind === "team" ? row.team === name : kind === "seat" ? row.seat === name : !row.team && !row.seat));
  return html`<dialog ref=${dialog} class="help talk" aria-labelledby="who-title" data-who onClose=${close}>
    <h2 id="who-title"><bdi>${name}</bdi></h2>
    ${there.length === 0 && html`<p class="muted">${t("map.empty")}</p>`}
    <ul class="people">${there.map((row) => html`<li key=${row.id} data-status=${row.st}>
      <a class="person" href=${`/courses/${encodeURIComponent(courseId)}/students/${row.id}`}><bdi>${labelOf(row)}</bdi></a>
      <span>${row.seat && html`<bdi class="muted">${row.seat}</bdi> `}<${Glyph} kind=${row.st} /> ${t(`status.${row.st}`)}${row.since > 0 && ` ${formatWait(now.value - row.since)}`}</span>
    </li>`)}</ul>
    <form method="dialog" class="write-end"><button class="primary" data-act="close">${t("help.close")}</button></form>
  </dialog>`;
}

function listenForNames() {
  const press = (/** @type {KeyboardEvent} */ event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.key === "a" && hasShortcuts.value && !event.ctrlKey && !event.metaKey && !event.altKey && !target.matches("input, select, textarea")) toggleNames();
  };
  addEventListener("keydown", press);
  return () => removeEventListener("keydown", press);
}
