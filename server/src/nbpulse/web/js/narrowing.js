// @ts-check
/**
 * What of the class is looked at, and in which order: teams, sections, places of rows. Pure, as state.js.
 * @typedef {import("./state.js").Row} Row
 * @typedef {import("./state.js").Status} Status
 * @typedef {import("./state.js").Alert} Alert
 * @typedef {import("./state.js").Cell} Cell
 */

import { measureUrgency } from "./state.js";

/** @param {Row[]} rows @param {string} team "" for all @returns {Row[]} those that are known */
export function ofTeam(rows, team) {
  return rows.filter((row) => row && (!team || row.team === team));
}

/** Whether that status says that they are here. @param {Status} status */
const isHere = (status) => status !== "offline" && status !== "paused";

/** @param {Row[]} rows @returns {Record<Status, number>} */
export function countStatuses(rows) {
  const counts = { help: 0, stuck: 0, idle: 0, behind: 0, ok: 0, paused: 0, offline: 0 };
  for (const row of rows) counts[row.st] += 1;
  return counts;
}

/**
 * Each row's place in an order: by seat, by the name shown, or least progress first; null for the roster's own order.
 * @param {Row[]} rows @param {"number"|"seat"|"name"|"progress"} order @param {(row: Row) => string} nameOf @param {string} language
 * @returns {?Map<number, number>} by index
 */
export function findPlaces(rows, order, nameOf, language) {
  if (order === "number") return null;
  const { compare } = new Intl.Collator(language, { numeric: true });
  const known = rows.filter(Boolean).map((row) => ({ row, text: order === "seat" ? (row.seat ?? "") : nameOf(row) }));
  known.sort((a, b) =>
    order === "progress"
      ? a.row.pos - b.row.pos || a.row.i - b.row.i
      : Number(!a.text) - Number(!b.text) || compare(a.text, b.text) || a.row.i - b.row.i,
  );
  return new Map(known.map(({ row }, place) => [row.i, place]));
}

/** Rows by their places; who has none yet comes last. @param {Row[]} rows @param {?Map<number, number>} places @returns {Row[]} */
export function inOrder(rows, places) {
  if (!places) return rows;
  const placeOf = (/** @type {Row} */ row) => places.get(row.i) ?? Infinity;
  return rows.slice().sort((a, b) => (placeOf(a) === placeOf(b) ? a.i - b.i : placeOf(a) - placeOf(b)));
}

/**
 * The teams with who needs somebody in each, the most urgent first; none where nobody has a team.
 * @param {Row[]} rows @param {Record<string, Alert>} alerts @param {number} [at] ms epoch
 * @returns {{team: string, size: number, counts: Record<Status, number>}[]}
 */
export function listTeams(rows, alerts, at = 0) {
  const known = rows.filter((row) => row?.team);
  const urgencies = new Map();
  for (const alert of Object.values(alerts)) urgencies.set(alert.i, Math.max(measureUrgency(alert, at), urgencies.get(alert.i) ?? -Infinity));
  const teams = Object.entries(Object.groupBy(known, (row) => /** @type {string} */ (row.team))).map(([team, members = []]) => ({
    team,
    size: members.length,
    counts: countStatuses(members),
    urgency: Math.max(...members.map((row) => urgencies.get(row.i) ?? -Infinity)),
  }));
  return teams.sort((a, b) => (a.urgency === b.urgency ? (a.team < b.team ? -1 : 1) : b.urgency - a.urgency));
}

/**
 * The notebook's sections in their order, with how many students are in each: at its cells, by the furthest they ran.
 * @param {Cell[]} cells @param {Row[]} rows @returns {{title: string, first: number, last: number, n: number}[]} columns from 0
 */
export function listSections(cells, rows) {
  /** @type {{title: string, first: number, last: number, n: number}[]} */
  const sections = [];
  cells.forEach(({ title }, column) => {
    const before = sections.at(-1);
    if (before && before.title === (title ?? "")) before.last = column;
    else sections.push({ title: title ?? "", first: column, last: column, n: 0 });
  });
  if (sections.every((one) => !one.title)) return [];
  for (const { pos, st } of rows) {
    const found = pos && isHere(st) && sections.find((one) => one.last >= pos - 1);
    if (found) found.n += 1;
  }
  return sections;
}

/** The median position of the connected who have begun, and how many are connected. @param {Row[]} rows */
export function findMedian(rows) {
  const connected = rows.filter((row) => isHere(row.st));
  const begun = connected.map((row) => row.pos).filter((pos) => pos > 0).sort((a, b) => a - b);
  const middle = begun.length >> 1;
  const median = begun.length === 0 ? null : begun.length % 2 ? begun[middle] : (begun[middle - 1] + begun[middle]) / 2;
  return { median, connected: connected.length };
}
