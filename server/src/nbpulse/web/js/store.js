// @ts-check
/** What the page shows now, as signals: the class, the line to it, and the viewer's own choices. */
import { computed, signal } from "./preact.js";
import { countStatuses, inOrder, ofTeam } from "./narrowing.js";
import { filterRows, rankAlerts, supposeAlerts } from "./state.js";

/** @type {{value: ?import("./state.js").State}} */
export const classroom = signal(null);
/** @type {{value: import("./connection.js").Link}} */
export const link = signal({ phase: "connecting", lagMs: null, asOf: null, problem: null });

// Parts of the class that keep their identity while unchanged, so that only their own view renders again.
/** @template T @param {(state: import("./state.js").State) => T} pick @returns {import("./preact.js").Signal<T>} */
const part = (pick) => computed(() => pick(/** @type {any} */ (classroom.value)));
export const course = part((state) => state.course);
const classCounts = part((state) => state.counts);
export const cells = part((state) => state.cells);
export const rows = part((state) => state.rows);
/** @type {{value: Record<string, import("./state.js").Guess>, peek: () => Record<string, import("./state.js").Guess>}} */
export const guesses = signal({});
const toldAlerts = part((state) => state.alerts);
export const alerts = computed(() => supposeAlerts(toldAlerts.value, guesses.value));
export const hotCells = part((state) => state.hot);
export const mutedGroups = part((state) => state.muted);
/** Whether the class is a past one, being replayed. */
export const isPast = signal(false);

/** What was said here and is not yet on the wire. @type {{value: ?{notebookId: string, cell: ?string}}} */
export const guessedCell = signal(null);
const lesson = part((state) => state.lesson);
const notebookId = part((state) => state.notebook?.id);
/** When the class came to which column (-1: none), the newest last; what was just said here is the newest. */
export const lessonSteps = computed(() => {
  const columnOf = new Map(cells.value.map((cell, column) => [cell.id, column]));
  const steps = lesson.value.map(([at, cell]) => ({ at, cell, column: columnOf.get(cell ?? "") ?? -1 }));
  const guess = guessedCell.value;
  if (!guess || guess.notebookId !== notebookId.value || (steps.at(-1)?.cell ?? null) === guess.cell) return steps;
  return [...steps, { at: now.peek(), cell: guess.cell, column: columnOf.get(guess.cell ?? "") ?? -1 }];
});
/** The column at which the class is; -1: nobody said. */
export const lessonColumn = computed(() => lessonSteps.value.at(-1)?.column ?? -1);

/** What everything on the page is narrowed to: a team ("" all), and the last so many minutes (0 all) of its charts. */
export const team = signal("");
export const minutes = signal(0);
/** @type {{value: ?{errors: import("./state.js").SharedError[], charts: import("./state.js").Charts}}} what the server drew of that */
export const narrowed = signal(null);
const classCharts = part((state) => state.charts);
const classErrors = part((state) => state.errors);
export const charts = computed(() => narrowed.value?.charts ?? classCharts.value);
export const sharedErrors = computed(() => narrowed.value?.errors ?? classErrors.value);
/** The students of the team that is chosen, of all teams without. */
export const teamRows = computed(() => ofTeam(rows.value, team.value));
export const counts = computed(() => (team.value ? countStatuses(teamRows.value) : classCounts.value));
/** Alerts of these students. */
export const teamAlerts = computed(() => {
  if (!team.value) return alerts.value;
  const mine = new Set(teamRows.value.map((row) => row.i));
  return Object.fromEntries(Object.entries(alerts.value).filter(([, alert]) => mine.has(alert.i)));
});
export const rankedAlerts = computed(() => rankAlerts(teamAlerts.value, minute.value));
export const cellNumbers = computed(() => new Map(cells.value.map((cell) => [cell.id, cell.idx + 1])));

/** Server time in ms, ticking each second; `minute` each 15 s for what shows minutes only. */
export const now = signal(Date.now());
export const minute = computed(() => Math.floor(now.value / 15_000) * 15_000);
export const clockOffsetMs = signal(0);

/** @type {{value: Record<string, import("./api.js").Sign[]>}} what is missing of whose data, by student */
export const gaps = signal({});

export const isNamed = signal(sessionStorage.getItem("nbpulse.names") === "shown");
export const searchText = signal("");
/** @type {{value: "number"|"seat"|"name"|"progress"}} */
export const order = signal(/** @type {any} */ (localStorage.getItem("nbpulse.order") ?? "number"));
/** @type {{value: ?Map<number, number>}} places in that order, renewed now and then: rows do not move under the hand */
export const places = signal(null);
export const shownRows = computed(() => inOrder(filterRows(teamRows.value, searchText.value), places.value));
/** Size of the grid: 0 small, 1 normal, 2 large. */
export const zoom = signal(Number(localStorage.getItem("nbpulse.zoom") ?? 1));
/** The section of the notebook that is pointed out. */
export const section = signal("");
export const hasCharts = signal(localStorage.getItem("nbpulse.charts") !== "off");
/** @type {{value: ?number}} index of the student the teacher points at */
export const selected = signal(null);
/** @type {{value: "attention"|"grid"|"shared"|"charts"}} */
export const tab = signal("attention");
/** Who looks. */
export const me = signal({ user_id: "", display_name: "" });
/** What was just done, told at the bottom. */
export const notes = signal(/** @type {any[]} */ ([]));
/** @type {{value: ?{student: string}|?{key: string, drafts: string[], error?: any, to?: any, title?: string}}} to whom the viewer writes */
export const talk = signal(null);
/** Announcements made here: fingerprint -> batch. */
export const announced = signal(/** @type {Record<string, string>} */ ({}));
export const isHelpOpen = signal(false);
export const isAccountOpen = signal(false);
export const hasShortcuts = signal(localStorage.getItem("nbpulse.shortcuts") !== "off");
export const theme = signal(localStorage.getItem("nbpulse.theme") ?? "auto");

/** @type {{value: "wide"|"tabs"}} */
export const layout = signal("wide");
const wide = matchMedia("(min-width: 900px)");
const readLayout = () => (layout.value = wide.matches ? "wide" : "tabs");
wide.addEventListener("change", readLayout);
readLayout();

export function toggleNames() {
  isNamed.value = !isNamed.value;
  sessionStorage.setItem("nbpulse.names", isNamed.value ? "shown" : "hidden");
}

/** @param {boolean} wanted */
export function setShortcuts(wanted) {
  hasShortcuts.value = wanted;
  localStorage.setItem("nbpulse.shortcuts", wanted ? "on" : "off");
}

/** @param {"number"|"seat"|"name"|"progress"} wanted */
export function setOrder(wanted) {
  order.value = wanted;
  localStorage.setItem("nbpulse.order", wanted);
}

/** @param {number} wanted */
export function setZoom(wanted) {
  zoom.value = Math.min(2, Math.max(0, wanted));
  localStorage.setItem("nbpulse.zoom", String(zoom.value));
}

export function toggleCharts() {
  hasCharts.value = !hasCharts.value;
  localStorage.setItem("nbpulse.charts", hasCharts.value ? "on" : "off");
}

/** @param {string} wanted "auto" | "light" | "dark" */
export function setTheme(wanted) {
  theme.value = wanted;
  localStorage.setItem("nbpulse.theme", wanted);
  if (wanted === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = wanted;
}

/** The label a row goes by while names are hidden or shown. @param {import("./state.js").Row} row */
export function labelOf(row) {
  return isNamed.value ? row.name : row.num;
}
