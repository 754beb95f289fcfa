// @ts-check
/** Making the map: a picture of the room, and teams and seats put on it with the pointer, the arrows or numbers. */
import { ApiError, changeMap, changePicture, fetchMap, removePicture } from "../api.js";
import { html, useEffect, useRef, useState } from "../preact.js";
import { t } from "../i18n.js";
import { Ground } from "./map.js";
import { Problem } from "./pages.js";
import { arrange, beginHistory, change, groupRows, keyOf, put, redo, snap, STEP, undo } from "./places.js";

/** @typedef {import("./places.js").Place} Place @typedef {import("./places.js").Kind} Kind @typedef {import("./map.js").RoomMap} RoomMap */

const SIDE_MOST = 1_600;
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** @param {{courseId: string, room: RoomMap, rows: import("../state.js").Row[], done: (saved: ?RoomMap) => void}} props */
export function MapEditor({ courseId, room, rows, done }) {
  const [base, setBase] = useState(room);
  const [history, setHistory] = useState(beginHistory(room.places));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const [isUnreadable, setUnreadable] = useState(false);
  const places = history.now;
  const isChanged = JSON.stringify(places) !== JSON.stringify(base.places);
  const set = (/** @type {Place[]} */ wanted) => setHistory((known) => change(known, wanted));
  const run = async (/** @type {() => Promise<any>} */ work) => {
    setProblem(null);
    setUnreadable(false);
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  const save = (/** @type {number} */ version) => run(async () => done(await changeMap(courseId, version, places)));
  const overwrite = () => run(async () => done(await changeMap(courseId, (await fetchMap(courseId)).version, places)));
  const takeTheirs = () => run(async () => {
    const theirs = await fetchMap(courseId);
    setBase(theirs);
    set(theirs.places); // one's own is a step back
  });
  const choose = (/** @type {any} */ event) => {
    const file = event.currentTarget.files[0];
    event.currentTarget.value = "";
    if (!file) return;
    void run(async () => {
      const picture = await shrink(file);
      if (!picture) setUnreadable(true);
      else setBase(await changePicture(courseId, base.version, picture));
    });
  };
  useEffect(() => listenToKeys(setHistory), []);
  useEffect(() => {
    if (!isChanged) return undefined;
    const ask = (/** @type {Event} */ event) => event.preventDefault();
    addEventListener("beforeunload", ask);
    return () => removeEventListener("beforeunload", ask);
  }, [isChanged]);
  return html`<p>${t("map.how")}</p>
    <div class="ends">
      <button class="primary" data-action="save-map" onClick=${() => save(base.version)}>${t("map.save")}</button>
      <button data-action="leave-map" onClick=${() => done(base)}>${t(isChanged ? "map.discard" : "map.leave")}</button>
      <button data-action="undo" disabled=${history.past.length === 0} onClick=${() => setHistory(undo)}>${t("map.undo")}</button>
      <button data-action="redo" disabled=${history.future.length === 0} onClick=${() => setHistory(redo)}>${t("map.redo")}</button>
      <label class="file">${t("map.choose_picture")} <input type="file" accept="image/png,image/jpeg,image/webp" onChange=${choose} /></label>
      ${base.picture && html`<button data-action="remove-picture" onClick=${() => run(async () => setBase(await removePicture(courseId, base.version)))}>${t("map.remove_picture")}</button>`}
    </div>
    ${problem && html`<${Problem} error=${problem} />`}
    ${problem?.code === "NB-1300" && html`<div class="ends">
      <button data-action="take-theirs" onClick=${takeTheirs}>${t("map.take_theirs")}</button>
      <button data-action="overwrite" onClick=${overwrite}>${t("map.overwrite")}</button></div>`}
    ${isUnreadable && html`<p class="problem" role="alert">${t("map.unreadable")}</p>`}
    <${Floor} courseId=${courseId} room=${base} places=${places} set=${set} />
    <${Unplaced} kind="team" rows=${rows} places=${places} set=${set} />
    <${Unplaced} kind="seat" rows=${rows} places=${places} set=${set} />
    <${List} places=${places} set=${set} />`;
}

/** @param {{courseId: string, room: RoomMap, places: Place[], set: (places: Place[]) => void}} props */
function Floor({ courseId, room, places, set }) {
  const ground = useRef(/** @type {?HTMLElement} */ (null));
  const [moving, setMoving] = useState(/** @type {?Place} */ (null));
  const follow = (/** @type {PointerEvent} */ event, /** @type {Place} */ place) => {
    const box = /** @type {HTMLElement} */ (ground.current).getBoundingClientRect();
    const [x, y] = [(100 * (event.clientX - box.left)) / box.width, (100 * (event.clientY - box.top)) / box.height];
    setMoving({ ...place, x: snap(x), y: snap(y) });
  };
  const drop = () => {
    if (moving) set(put(places, moving));
    setMoving(null);
  };
  const press = (/** @type {KeyboardEvent} */ event, /** @type {Place} */ place) => {
    const [dx, dy] = ARROWS[event.key] ?? [0, 0];
    const isRemoved = event.key === "Delete" || event.key === "Backspace";
    if (!dx && !dy && !isRemoved) return;
    event.preventDefault();
    const far = event.shiftKey ? 4 * STEP : STEP;
    // In its own place of the list, so that the focus stays on it.
    if (isRemoved) set(places.filter((one) => one !== place));
    else set(places.map((one) => (one === place ? { ...one, x: snap(one.x + dx * far), y: snap(one.y + dy * far) } : one)));
  };
  return html`<${Ground} courseId=${courseId} room=${room} onGround=${ground}>${places.map((place) => {
    const shown = moving && keyOf(moving) === keyOf(place) ? moving : place;
    return html`<button key=${keyOf(place)} class="spot" data-spot=${keyOf(place)} data-x=${shown.x} data-y=${shown.y} data-moving=${shown === moving}
      aria-label=${t("map.placed", { name: place.name, x: shown.x, y: shown.y })} style=${{ left: `${shown.x}%`, top: `${shown.y}%` }}
      onPointerDown=${(/** @type {any} */ e) => e.currentTarget.setPointerCapture(e.pointerId)}
      onPointerMove=${(/** @type {any} */ e) => e.currentTarget.hasPointerCapture(e.pointerId) && follow(e, place)}
      onPointerUp=${drop} onPointerCancel=${() => setMoving(null)} onKeyDown=${(/** @type {any} */ e) => press(e, place)}><bdi>${place.name}</bdi></button>`;
  })}<//>`;
}

/** What is not on the map yet: one click puts it into the middle, another all of them into rows. @param {{kind: Kind, rows: any[], places: Place[], set: (places: Place[]) => void}} props */
function Unplaced({ kind, rows, places, set }) {
  const known = new Set(places.map(keyOf));
  const names = [...groupRows(rows, kind).keys()].filter((name) => !known.has(keyOf({ kind, name })));
  if (names.length === 0) return null;
  return html`<section aria-labelledby=${`unplaced-${kind}`} data-unplaced=${kind}>
    <h2 id=${`unplaced-${kind}`}>${t(`map.unplaced_${kind}`, { n: names.length })}</h2>
    <div class="ends"><button data-action="place-all" onClick=${() => set([...places, ...arrange(kind, names)])}>${t("map.place_all")}</button></div>
    <ul class="spots">${names.map((name) => html`<li key=${name}><button class="spot" data-place=${keyOf({ kind, name })} onClick=${() => set(put(places, { kind, name, x: 50, y: 50 }))}><span aria-hidden="true">+ </span><bdi>${name}</bdi></button></li>`)}</ul>
  </section>`;
}

/** The same in numbers. @param {{places: Place[], set: (places: Place[]) => void}} props */
function List({ places, set }) {
  if (places.length === 0) return null;
  const sorted = [...places].sort((a, b) => keyOf(a).localeCompare(keyOf(b), undefined, { numeric: true }));
  const move = (/** @type {Place} */ place, /** @type {"x"|"y"} */ axis, /** @type {string} */ text) =>
    set(places.map((one) => (one === place ? { ...one, [axis]: snap(Number(text) || 0) } : one)));
  return html`<details data-list><summary>${t("map.list", { n: places.length })}</summary><ul class="people">${sorted.map((place) => html`<li key=${keyOf(place)}>
    <bdi class="person">${place.name}</bdi>
    <span class="fields">${/** @type {("x"|"y")[]} */ (["x", "y"]).map((axis) => html`<label key=${axis}>${t(`map.${axis}`)}
      <input type="number" min="0" max="100" step=${STEP} value=${place[axis]} aria-label=${`${place.name}: ${t(`map.${axis}`)}`} onChange=${(/** @type {any} */ e) => move(place, axis, e.currentTarget.value)} /></label>`)}
      <button data-action="take-off" onClick=${() => set(places.filter((one) => one !== place))}>${t("map.take_off")}<span class="unseen"> ${place.name}</span></button></span>
  </li>`)}</ul></details>`;
}

/**
 * The picture as it is to be sent: turned upright, no larger than it is looked at, without what a camera adds. Null for
 * a file that the browser cannot draw.
 * @param {File} file @returns {Promise<?Blob>}
 */
async function shrink(file) {
  if (file.type === "image/svg+xml") return null;
  const drawn = await createImageBitmap(file).catch(() => null);
  if (!drawn) return null;
  const scale = Math.min(1, SIDE_MOST / Math.max(drawn.width, drawn.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(drawn.width * scale));
  canvas.height = Math.max(1, Math.round(drawn.height * scale));
  canvas.getContext("2d")?.drawImage(drawn, 0, 0, canvas.width, canvas.height);
  drawn.close();
  return new Promise((done) => canvas.toBlob(done, file.type === "image/png" ? "image/png" : "image/jpeg", 0.85));
}

/** @param {(change: (history: import("./places.js").History) => import("./places.js").History) => void} set */
function listenToKeys(set) {
  const press = (/** @type {KeyboardEvent} */ event) => {
    const key = event.key.toLowerCase();
    if (!(event.ctrlKey || event.metaKey) || !["z", "y"].includes(key) || /** @type {HTMLElement} */ (event.target).matches("input")) return;
    event.preventDefault();
    set(key === "y" || event.shiftKey ? redo : undo);
  };
  addEventListener("keydown", press);
  return () => removeEventListener("keydown", press);
}
