// @ts-check
/** Teams and seats of a room: who sits where, how they stand, and how places are laid out and moved. Pure. */

/**
 * @typedef {import("../state.js").Row} Row
 * @typedef {"team"|"seat"} Kind
 * @typedef {{kind: Kind, name: string, x: number, y: number}} Place percent from the left and the top, in steps of 2.5
 * @typedef {{past: Place[][], now: Place[], future: Place[][]}} History
 */

export const STEP = 2.5;

/** The nearest step within the map. @param {number} percent */
export const snap = (percent) => Math.min(100, Math.max(0, Math.round(percent / STEP) * STEP));

/** @param {{kind: Kind, name: string}} place */
export const keyOf = ({ kind, name }) => `${kind} ${name}`;

/** A class's teams or seats with their students, by name. @param {Row[]} rows @param {Kind} kind @returns {Map<string, Row[]>} */
export function groupRows(rows, kind) {
  /** @type {Map<string, Row[]>} */
  const groups = new Map();
  for (const row of rows) {
    const name = row?.[kind];
    if (name) groups.set(name, [...(groups.get(name) ?? []), row]);
  }
  return new Map([...groups].sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true })));
}

/** The status that somebody should be looked after for first; null for nobody. @param {Row[]} rows @param {string[]} order the most urgent first */
export function worstStatus(rows, order) {
  return order.find((status) => rows.some((row) => row.st === status)) ?? null;
}

/** Those of whom no place is on the map. @param {Row[]} rows @param {Place[]} places */
export function findElsewhere(rows, places) {
  const known = new Set(places.map(keyOf));
  return rows.filter((row) => row && !known.has(`team ${row.team}`) && !known.has(`seat ${row.seat}`));
}

/**
 * Row and column of a seat written like A-1, A1, B 12 or 3-4; null for any other. @param {string} seat
 * @returns {?{row: string, column: number}}
 */
export function readSeat(seat) {
  const found = /^([A-Z]{1,2}|\d{1,2}(?=[-_ ]))[-_ ]?(\d{1,3})$/.exec(seat.normalize("NFKC").replace(/[\u2010-\u2015\u2212\u30fc]/g, "-").trim().toUpperCase());
  return found && { row: found[1], column: Number(found[2]) };
}

/** Places for these names, in the order of the rows and columns that seats are named by, else row by row. @param {Kind} kind @param {string[]} names @returns {Place[]} */
export function arrange(kind, names) {
  const seats = names.map(readSeat);
  const width = Math.ceil(Math.sqrt(names.length));
  const spots = seats.every(Boolean)
    ? seats.map((seat) => ({ row: seat?.row ?? "", column: seat?.column ?? 0 }))
    : names.map((_, i) => ({ row: String(Math.floor(i / width)), column: i % width }));
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const rows = [...new Set(spots.map((spot) => spot.row))].sort(compare);
  const columns = [...new Set(spots.map((spot) => spot.column))].sort((a, b) => a - b);
  const spread = (/** @type {number} */ i, /** @type {number} */ n) => snap(n < 2 ? 50 : 7.5 + (85 * i) / (n - 1));
  return names.map((name, i) => ({ kind, name, x: spread(columns.indexOf(spots[i].column), columns.length), y: spread(rows.indexOf(spots[i].row), rows.length) }));
}

/** @param {Place[]} places @returns {History} */
export const beginHistory = (places) => ({ past: [], now: places, future: [] });

/** @param {History} history @param {Place[]} places @returns {History} */
export const change = ({ past, now }, places) => ({ past: [...past, now], now: places, future: [] });

/** @param {History} history @returns {History} */
export function undo({ past, now, future }) {
  return past.length === 0 ? { past, now, future } : { past: past.slice(0, -1), now: past[past.length - 1], future: [now, ...future] };
}

/** @param {History} history @returns {History} */
export function redo({ past, now, future }) {
  return future.length === 0 ? { past, now, future } : { past: [...past, now], now: future[0], future: future.slice(1) };
}

/** The places with this one on it, wherever it was before. @param {Place[]} places @param {Place} place */
export function put(places, place) {
  return [...places.filter((one) => keyOf(one) !== keyOf(place)), { ...place, x: snap(place.x), y: snap(place.y) }];
}
