// @ts-check
/**
 * The class as the board knows it: a pure reducer, snapshot + frames -> state.
 * No DOM, no network, no clock. What did not change keeps its identity, so views compare with `===`.
 *
 * A frame is applied in this order: notebook(s), cells, students, c, p, st, do, alerts, figures. When the
 * list of columns changes, each row's squares follow their cell by its id; a new column starts as "not run".
 *
 * @typedef {{id: string, idx: number, title: ?string, exercise?: string}} Cell `title`: of the section it stands in
 * @typedef {{id: string, path: string, title: ?string, active?: number}} Notebook
 * @typedef {"help"|"stuck"|"idle"|"behind"|"ok"|"paused"|"offline"} Status
 * @typedef {""|"running"|"thinking"|"kernel_dead"|"away"} Doing "" where the data does not say
 * @typedef {{i: number, id: string, name: string, num: string, seat: ?string, team: ?string,
 *   same?: ?string, s: string, pos: number, st: Status, since: number, do?: Doing, quiet?: number, mail?: number}} Row
 *   `quiet`: until when nothing is said of them, 0 for not; `mail`: messages of theirs nobody has answered
 * @typedef {{by: string, name: string, at: number}} Claim who is on it
 * @typedef {{id: string, i: number, kind: string, since: number, cell: ?string, idx: ?number, label: ?string,
 *   n: ?number, text: ?string, typical?: ?number, weight: number,
 *   ranked_since: number, claim?: ?Claim}} Alert `kind`: of STATUS_OF; `typical`: ms
 * @typedef {{claim: ?Claim}|{isGone: true}} Guess what an action is going to change
 * @typedef {{fp: string, label: string, cell: string, n: number, since: number, title: ?string, merged: number}} SharedError
 * @typedef {{fp: string, n: number, label: ?string, cell: ?string, title: ?string}} MutedGroup without a label, with a cell: that cell
 * @typedef {{id: string, title: string, time_zone: string, join_code: string, is_demo: boolean,
 *   join_url?: string}} Course the address students reach, where it is not the teacher's own
 * @typedef {{cell: string, failed: number, tried: number, since: number, fp: string}} HotCell
 * @typedef {[number, number, number, number, ?number, ?number, ?number, ?number]} Funnel column; learners who reached it, ok,
 *   error; 25th, 50th, 75th, 90th percentile of the seconds on it
 * @typedef {[number, number, number]} Trend start of a half minute in ms; runs; errors among them
 * @typedef {[number, number, number, number]} Curve start of a minute in ms; quartiles of the positions at its end
 * @typedef {[string, number, number]} Exercise its id; learners who began it; who have done it
 * @typedef {{funnel: Funnel[], trend: Trend[], curve: Curve[], exercises: Exercise[]}} Charts
 * @typedef {{lag_ms: ?number, received: number, stored: number}} Health
 * @typedef {{id: string, title: ?string, started_at: number, ended_at: ?number}} Meeting times in ms
 * @typedef {{id: string, name: string, here: boolean, with: ?number}} Staff `with`: index of the student they go to
 * @typedef {[number, ?string]} LessonStep when in ms; at which cell from then on, null at none
 * @typedef {Object} State
 * @property {string} epoch @property {number} seq @property {number} at
 * @property {Course} course @property {?Notebook} notebook @property {Notebook[]} notebooks
 * @property {Record<Status, number>} counts @property {?number} median @property {number} connected
 * @property {Cell[]} cells @property {Row[]} rows @property {Record<string, Alert>} alerts
 * @property {SharedError[]} errors those that several students have now, the most widespread first
 * @property {HotCell[]} hot cells that fail for too many of those who tried
 * @property {MutedGroup[]} muted what staff have muted
 * @property {Charts} charts @property {?{at: number, counts: Record<Status, number>}} ago the counters some minutes ago
 * @property {?Health} health
 * @property {Staff[]} staff who has or had a board open
 * @property {?Meeting} meeting the newest class meeting; over when it has an end
 * @property {LessonStep[]} lesson where staff said the class is, the newest last
 */

/** States of a square, in the order of the wire's digits. */
export const SQUARE_NAMES = ["none", "ok", "running", "error", "stuck"];

/** What a student with an alert of that kind is counted as. @type {Record<string, Status>} */
export const STATUS_OF = {
  help: "help", stuck: "stuck", wrong_answer: "stuck", same_error: "stuck", long_run: "stuck", no_progress: "stuck",
  idle: "idle", not_started: "behind", behind: "behind",
};

/**
 * @param {any} snapshot the answer of GET /api/v1/courses/{course_id}/live
 * @returns {State}
 */
export function applySnapshot(snapshot) {
  /** @type {Row[]} */
  const rows = [];
  for (const student of snapshot.students) rows[student.i] = fitted(student, snapshot.cells.length);
  return {
    epoch: snapshot.epoch,
    seq: snapshot.seq,
    at: snapshot.at,
    course: snapshot.course,
    notebook: snapshot.notebook ?? null,
    notebooks: snapshot.notebooks ?? [],
    counts: snapshot.counts,
    median: snapshot.median ?? null,
    connected: snapshot.connected,
    cells: snapshot.cells,
    rows,
    alerts: Object.fromEntries(snapshot.alerts.map((/** @type {Alert} */ alert) => [alert.id, alert])),
    errors: snapshot.errors ?? [],
    hot: snapshot.hot ?? [],
    muted: snapshot.muted ?? [],
    charts: pickCharts(snapshot),
    ago: snapshot.ago ?? null,
    health: snapshot.h ?? null,
    meeting: snapshot.meeting ?? null,
    staff: snapshot.staff ?? [],
    lesson: snapshot.lesson ?? [],
  };
}

/**
 * Where a frame stands: "next" can be applied, "old" is already in the state, "gap" means one was missed.
 * @param {State} state @param {any} frame @returns {"next"|"old"|"gap"}
 */
export function placeFrame(state, frame) {
  if (frame.seq <= state.seq) return "old";
  return frame.seq === state.seq + 1 ? "next" : "gap";
}

/**
 * The state after `frame`; an old frame changes nothing.
 * @param {State} state @param {any} frame @returns {State}
 * @throws {RangeError} on a gap, or when the frame names a student nobody told us about: resync then
 */
export function applyFrame(state, frame) {
  const place = placeFrame(state, frame);
  if (place === "old") return state;
  if (place === "gap") throw new RangeError(`frame ${frame.seq} after ${state.seq}`);
  const cells = frame.cells ?? state.cells;
  return {
    ...state,
    seq: frame.seq,
    at: frame.at,
    course: frame.course ? { ...state.course, ...frame.course } : state.course,
    notebook: "notebook" in frame ? frame.notebook : state.notebook,
    notebooks: frame.notebooks ?? state.notebooks,
    counts: frame.counts ? { ...state.counts, ...frame.counts } : state.counts,
    median: "median" in frame ? frame.median : state.median,
    connected: frame.connected ?? state.connected,
    cells,
    rows: changedRows(state, frame, cells),
    alerts: changedAlerts(state.alerts, frame),
    errors: frame.errors ?? state.errors,
    hot: frame.hot ?? state.hot,
    muted: frame.muted ?? state.muted,
    charts: changedCharts(state.charts, frame),
    ago: "ago" in frame ? frame.ago : state.ago,
    health: frame.h ? { ...state.health, ...frame.h } : state.health,
    meeting: "meeting" in frame ? frame.meeting : state.meeting,
    staff: frame.staff ?? state.staff,
    lesson: frame.lesson ?? state.lesson,
  };
}

/** @param {State} state @param {any} frame @param {Cell[]} cells @returns {Row[]} */
function changedRows(state, frame, cells) {
  if (!frame.cells && !frame.students && !frame.c && !frame.p && !frame.st && !frame.do) return state.rows;
  let rows = state.rows.slice();
  if (frame.cells) rows = movedColumns(rows, state.cells, cells);
  for (const student of frame.students ?? []) {
    rows[student.i] = fitted({ ...rows[student.i], ...student }, cells.length);
  }
  /** @param {number} i @param {Partial<Row>} change */
  const change = (i, change) => {
    if (!rows[i]) throw new RangeError(`frame ${frame.seq} names unknown student ${i}`);
    rows[i] = { ...rows[i], ...change };
  };
  /** @type {Map<number, string[]>} */
  const touched = new Map();
  for (const [i, column, square] of frame.c ?? []) {
    const squares = touched.get(i) ?? [...(rows[i]?.s ?? "")];
    squares[column] = String(square);
    touched.set(i, squares);
  }
  for (const [i, squares] of touched) change(i, { s: squares.join("") });
  for (const [i, pos] of frame.p ?? []) change(i, { pos });
  for (const [i, st, since] of frame.st ?? []) change(i, { st, since });
  for (const [i, doing] of frame.do ?? []) change(i, { do: doing });
  return rows;
}

/** A row whose squares match the number of columns. @param {Row} row @param {number} width @returns {Row} */
function fitted(row, width) {
  const squares = row.s ?? "";
  return squares.length === width ? row : { ...row, s: squares.slice(0, width).padEnd(width, "0") };
}

/** @param {Row[]} rows @param {Cell[]} before @param {Cell[]} after @returns {Row[]} */
function movedColumns(rows, before, after) {
  const columnOf = new Map(before.map((cell, column) => [cell.id, column]));
  const from = after.map((cell) => columnOf.get(cell.id) ?? -1);
  if (from.length === before.length && from.every((column, index) => column === index)) return rows;
  return rows.map((row) => ({ ...row, s: from.map((column) => row.s[column] ?? "0").join("") }));
}

/** @param {any} from a snapshot, or the answer of GET .../charts @returns {Charts} */
export function pickCharts({ funnel = [], trend = [], curve = [], exercises = [] }) {
  return { funnel, trend, curve, exercises };
}

/** @param {Charts} charts @param {any} frame @returns {Charts} */
function changedCharts(charts, frame) {
  if (!["funnel", "trend", "curve", "exercises", "f", "x", "q"].some((part) => part in frame)) return charts;
  return {
    funnel: patched(frame.funnel ?? charts.funnel, frame.f),
    trend: patched(frame.trend ?? charts.trend, frame.x),
    curve: patched(frame.curve ?? charts.curve, frame.q),
    exercises: frame.exercises ?? charts.exercises,
  };
}

/** Entries are known by their first number and come in its order. @template T @param {T[]} entries @param {T[]} [changes] @returns {T[]} */
function patched(entries, changes) {
  if (!changes) return entries;
  const byKey = new Map([...entries, ...changes].map((entry) => [/** @type {any} */ (entry)[0], entry]));
  return [...byKey.values()];
}

/** @param {Record<string, Alert>} alerts @param {any} frame @returns {Record<string, Alert>} */
function changedAlerts(alerts, frame) {
  if (!frame["a+"] && !frame["a~"] && !frame["a-"]) return alerts;
  const changed = { ...alerts };
  for (const id of frame["a-"] ?? []) delete changed[id];
  for (const alert of [...(frame["a+"] ?? []), ...(frame["a~"] ?? [])]) {
    changed[alert.id] = { ...changed[alert.id], ...alert };
  }
  return changed;
}

/**
 * The alerts as they will be once the server has heard of what was just done here.
 * @param {Record<string, Alert>} alerts @param {Record<string, Guess>} guesses by alert id @returns {Record<string, Alert>}
 */
export function supposeAlerts(alerts, guesses) {
  const touched = Object.entries(guesses).filter(([id]) => alerts[id]);
  if (touched.length === 0) return alerts;
  const supposed = { ...alerts };
  for (const [id, guess] of touched) {
    if ("isGone" in guess) delete supposed[id];
    else supposed[id] = { ...supposed[id], claim: guess.claim };
  }
  return supposed;
}

/**
 * Alerts in the order in which a teacher should go at that time: the waiting of each by its kind's weight.
 * @param {Record<string, Alert>} alerts @param {number} at ms epoch @returns {Alert[]}
 */
export function rankAlerts(alerts, at) {
  return Object.values(alerts).sort(
    (a, b) => measureUrgency(b, at) - measureUrgency(a, at) || a.since - b.since || (a.id < b.id ? -1 : 1),
  );
}

/** The more, the sooner. @param {Alert} alert @param {number} at ms epoch */
export const measureUrgency = (alert, at) => alert.weight * (at - alert.ranked_since);

/** Start of the longest wait of one status, ms epoch, or null. @param {Record<string, Alert>} alerts @param {string} status */
export function oldestSince(alerts, status) {
  let oldest = null;
  for (const alert of Object.values(alerts)) {
    if (STATUS_OF[alert.kind] === status && (oldest === null || alert.since < oldest)) oldest = alert.since;
  }
  return oldest;
}

/**
 * The number people call the cell by at a position (1-based column, may be a median; 0 none): cells between the
 * columns, such as text, are counted, as everywhere on the board. @param {Cell[]} cells @param {number} pos
 */
export function cellNumberAt(cells, pos) {
  return pos < 1 ? 0 : (cells[Math.min(Math.floor(pos), cells.length) - 1]?.idx ?? -1) + 1;
}

/** Rows whose name, number, seat or team holds the text; the order never changes. @param {Row[]} rows @param {string} text */
export function filterRows(rows, text) {
  const wanted = text.normalize("NFKC").trim().toLocaleLowerCase();
  const known = rows.filter(Boolean);
  if (!wanted) return known;
  return known.filter((row) =>
    [row.name, row.num, row.seat, row.team].some((part) =>
      (part ?? "").normalize("NFKC").toLocaleLowerCase().includes(wanted),
    ),
  );
}
