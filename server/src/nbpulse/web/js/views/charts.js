// @ts-check
/** Two minutes: is the pace right, where does the class wait? Two or three charts beside each other, of the viewer's choice. */
import { html, memo, useState } from "../preact.js";
import { formatClock, formatNumber, formatSpan, t } from "../i18n.js";
import { cellNumberAt } from "../state.js";
import { listSections, listTeams } from "../narrowing.js";
import { alerts, cells, charts, lessonColumn, lessonSteps, minute, minutes, rows, section, team, teamRows } from "../store.js";
import { CellTable } from "./funnel.js";
import { Glyph } from "./glyph.js";
import { useHold } from "./hold.js";
import { Staff } from "./staff.js";

const KINDS = ["trend", "curve", "cells", "sections", "teams", "exercises"];
const SLOTS_KEY = "nbpulse.slots";
const TREND_MINUTES = 15;
const MINUTE_MS = 60_000;

/** @returns {string[]} */
function readSlots() {
  const kept = (localStorage.getItem(SLOTS_KEY) ?? "").split(" ").filter((one) => KINDS.includes(one));
  const usual = ["trend", "curve", rows.peek().some((row) => row?.team) ? "teams" : "cells"];
  return [...kept, ...usual.slice(kept.length)].slice(0, 3);
}

/** The strip under the grid. */
export function Charts() {
  const [slots, setSlots] = useState(readSlots);
  const choose = (/** @type {number} */ place, /** @type {string} */ kind) => {
    const next = slots.map((one, at) => (at === place ? kind : one));
    localStorage.setItem(SLOTS_KEY, next.join(" "));
    setSlots(next);
  };
  return html`<section class="charts" aria-label=${t("charts.title")}>
    ${slots.map((kind, place) => html`<${Card} key=${place} kind=${kind} choose=${(/** @type {string} */ wanted) => choose(place, wanted)} />`)}
  </section>`;
}

/** All of them, under each other. */
export function AllCharts() {
  return html`<section class="charts all" tabindex="0" aria-label=${t("charts.title")}>${KINDS.map((kind) => html`<${Card} key=${kind} kind=${kind} />`)}
    <article class="chart panel" data-chart="staff"><header class="panel-head"><h2>${t("staff.title")}</h2></header><div class="chart-body"><${Staff} /></div></article></section>`;
}

/** @param {{kind: string, choose?: (kind: string) => void}} props */
function Card({ kind, choose }) {
  const [isTable, setTable] = useState(false);
  const View = /** @type {Record<string, any>} */ ({ trend: Trend, curve: Curve, cells: Cells, sections: Sections, teams: Teams, exercises: Exercises })[kind];
  const hasTable = ["trend", "curve", "cells"].includes(kind);
  return html`<article class="chart panel" data-chart=${kind}>
    <header class="panel-head">
      ${choose
        ? html`<select aria-label=${t("charts.choose")} data-slot value=${kind} onChange=${(/** @type {any} */ e) => choose(e.target.value)}>
            ${KINDS.map((one) => html`<option key=${one} value=${one} selected=${one === kind}>${t(`chart.${one}`)}</option>`)}
          </select>`
        : html`<h2>${t(`chart.${kind}`)}</h2>`}
      <span class="spread"></span>
      ${hasTable && html`<button class="plain" data-table aria-pressed=${isTable} onClick=${() => setTable(!isTable)}>${t("charts.table")}</button>`}
    </header>
    <div class="chart-body" tabindex="0" role="group" aria-label=${t(`chart.${kind}`)}><${View} isTable=${isTable} /></div>
  </article>`;
}

const Empty = () => html`<p class="calm">${t("charts.empty")}</p>`;

/** Runs and errors by half minutes. @param {{isTable: boolean}} props */
function Trend({ isTable }) {
  const shown = charts.value.trend.slice(-2 * (minutes.value || TREND_MINUTES));
  const most = Math.max(...shown.map(([, runs]) => runs), 1);
  const [runs, errors] = [1, 2].map((part) => shown.reduce((sum, entry) => sum + entry[part], 0));
  if (runs === 0) return html`<${Empty} />`;
  const clock = (/** @type {number} */ at) => formatClock(at);
  if (isTable) {
    return html`<table>
      <thead><tr>${["time", "runs", "errors"].map((name) => html`<th key=${name} scope="col">${t(`trend.${name}`)}</th>`)}</tr></thead>
      <tbody>${shown.toReversed().map(([at, ...counts]) => html`<tr key=${at}><th scope="row">${clock(at)}</th>${counts.map((n, place) => html`<td key=${place}>${formatNumber(n)}</td>`)}</tr>`)}</tbody>
    </table>`;
  }
  const words = t("trend.summary", { minutes: shown.length / 2, runs, errors, share: Math.round((100 * errors) / runs) });
  return html`<p class="chart-words">${words}</p>
    <${Plot} most=${formatNumber(most)} from=${clock(shown[0][0]).slice(0, 5)} to=${t("charts.now")} label=${words}>
      ${shown.map(([at, count, failed], place) => html`<${Step} key=${at} x=${(100 * place) / shown.length} width=${80 / shown.length} ok=${(100 * (count - failed)) / most} failed=${(100 * failed) / most} />`)}
    <//>`;
}

const Step = memo(({ x, width, ok, failed }) => html`<rect data-kind="ok" x=${x} width=${width} y=${100 - ok} height=${ok} />
  <rect data-kind="error" x=${x} width=${width} y=${100 - ok - failed} height=${failed} />`);

/** A drawing of 100 by 100 with its axes' ends. @param {{most: string, from: string, to: string, label: string, children?: any}} props */
function Plot({ most, from, to, label, children }) {
  return html`<div class="plot"><span class="most">${most}</span>
    <svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label=${label}>${children}</svg>
    <span class="ends"><span>${from}</span><span>${to}</span></span>
  </div>`;
}

/** How far the class is: the median, and between which cells its middle half. @param {{isTable: boolean}} props */
function Curve({ isTable }) {
  const kept = charts.value.curve.slice(minutes.value ? -minutes.value - 1 : 0);
  const shown = kept.length === 1 ? [kept[0], kept[0]] : kept; // one point is no line
  const last = shown.at(-1);
  if (!last || !last[3]) return html`<${Empty} />`;
  const number = (/** @type {number} */ pos) => cellNumberAt(cells.value, pos);
  const clock = (/** @type {number} */ at) => formatClock(at).slice(0, 5);
  if (isTable) {
    return html`<table>
      <thead><tr>${["time", "quarter", "half", "three_quarters", "lesson"].map((name) => html`<th key=${name} scope="col">${t(`curve.${name}`)}</th>`)}</tr></thead>
      <tbody>${shown.toReversed().map(([at, ...quartiles]) => html`<tr key=${at}><th scope="row">${clock(at)}</th>${quartiles.map((pos, place) => html`<td key=${place}>${number(pos)}</td>`)}<td>${number(findLesson(at + MINUTE_MS) + 1) || "–"}</td></tr>`)}</tbody>
    </table>`;
  }
  const words = t("curve.summary", { quarter: number(last[1]), half: number(last[2]), three_quarters: number(last[3]) });
  const x = (/** @type {number} */ place) => (100 * place) / (shown.length - 1);
  const y = (/** @type {number} */ pos) => 100 - (100 * pos) / Math.max(cells.value.length, 1);
  const line = (/** @type {1|2|3} */ part) => shown.map((point, place) => `${x(place)},${y(point[part])}`);
  const taught = lessonColumn.value < 0 ? "" : t("curve.lesson_at", { cell: number(lessonColumn.value + 1) });
  return html`<p class="chart-words">${words}${taught && html` · <span class="lesson-key">${taught}</span>`}</p>
    <${Plot} most=${t("attention.at_cell", { cell: number(cells.value.length) })} from=${clock(shown[0][0])} to=${t("charts.now")} label=${taught ? `${words} · ${taught}` : words}>
      <polygon points=${[...line(1), ...line(3).reverse()].join(" ")} /><polyline points=${line(2).join(" ")} />
      <path data-lesson d=${drawLesson(kept[0][0] + (kept.length > 1 ? MINUTE_MS : 0), last[0] + MINUTE_MS, y)} />
    <//>`;
}

/** The column at which the class was then; -1: nobody said. @param {number} until ms */
function findLesson(until) {
  return lessonSteps.value.findLast(({ at }) => until > at)?.column ?? -1;
}

/** Where the class was taught, as steps from `start` to `end`; it breaks where nobody said. @param {number} start @param {number} end @param {(pos: number) => number} y */
function drawLesson(start, end, y) {
  const x = (/** @type {number} */ at) => (100 * (Math.min(Math.max(at, start), end) - start)) / (end - start);
  const steps = lessonSteps.value;
  return steps
    .map(({ at, column }, place) => ({ column, from: x(at), to: x(steps[place + 1]?.at ?? end), isNew: (steps[place - 1]?.column ?? -1) < 0 }))
    .filter(({ column, to }) => column >= 0 && to > 0)
    .map(({ column, from, to, isNew }) => `${isNew || from === 0 ? "M" : "L"}${from},${y(column + 1)}H${to}`)
    .join("");
}

/** Time on each cell: the median, and the middle half. @param {{isTable: boolean}} props */
function Cells({ isTable }) {
  const { funnel } = charts.value;
  if (isTable) return html`<${CellTable} funnel=${funnel} columns=${cells.value} />`;
  const known = funnel.filter((entry) => entry[5] !== null);
  if (known.length === 0) return html`<${Empty} />`;
  const longest = known.reduce((a, b) => (Number(b[5]) > Number(a[5]) ? b : a));
  const most = Math.max(...known.map((entry) => Number(entry[6])), 1);
  const words = t("cells.summary", { cell: cellNumberAt(cells.value, longest[0] + 1), half: formatSpan(Number(longest[5])) });
  const width = 100 / funnel.length;
  return html`<p class="chart-words">${words}</p>
    <${Plot} most=${formatSpan(most)} from=${t("attention.at_cell", { cell: cellNumberAt(cells.value, 1) })} to=${cellNumberAt(cells.value, funnel.length)} label=${words}>
      ${known.map(([column, , , , low, half, high]) => html`<${Span} key=${column} x=${(column + 0.1) * width} width=${0.8 * width}
        low=${(100 * Number(low)) / most} half=${(100 * Number(half)) / most} high=${(100 * Number(high)) / most} />`)}
    <//>`;
}

const Span = memo(({ x, width, low, half, high }) => html`<rect data-kind="ok" x=${x} width=${width} y=${100 - high} height=${Math.max(high - low, 1)} />
  <rect data-kind="half" x=${x} width=${width} y=${Math.min(98, 99 - half)} height="2" />`);

/** Where the class is in the notebook's contents. */
function Sections() {
  const sections = listSections(cells.value, teamRows.value);
  if (sections.length === 0) return html`<p class="calm">${t("sections.none")}</p>`;
  const most = Math.max(...sections.map((one) => one.n), 1);
  return html`<ol class="bars">${sections.map(({ title, first, last, n }) => html`<li key=${first} data-section-count=${n}>
    <button class="plain" aria-pressed=${section.value === title && title !== ""} onClick=${() => (section.value = section.value === title ? "" : title)}>
      <bdi>${title || t("sections.untitled")}</bdi> <span class="muted">${[...new Set([first, last].map((column) => cellNumberAt(cells.value, column + 1)))].join("–")}</span>
    </button><meter min="0" max=${most} value=${n}></meter><b>${formatNumber(n)}</b>
  </li>`)}</ol>`;
}

/** Teams, the most urgent first; they stand still while the hand is on them. */
function Teams() {
  const [isHeld, hand] = useHold();
  const [held, setHeld] = useState(/** @type {?string[]} */ (null));
  const listed = listTeams(rows.value, alerts.value, minute.value);
  if (isHeld !== (held !== null)) setHeld(isHeld ? listed.map((one) => one.team) : null);
  if (listed.length === 0) return html`<p class="calm">${t("teams.none")}</p>`;
  const order = new Map((held ?? []).map((name, place) => [name, place]));
  const shown = held ? listed.toSorted((a, b) => (order.get(a.team) ?? Infinity) - (order.get(b.team) ?? Infinity)) : listed;
  return html`<ol class="tiles" ...${hand}>${shown.map(({ team: name, size, counts }) => {
    const calling = ["help", "stuck", "idle", "behind"].filter((kind) => counts[/** @type {"help"} */ (kind)] > 0);
    return html`<li key=${name}><button data-team=${name} data-worst=${calling[0] ?? "ok"} aria-pressed=${team.value === name} onClick=${() => (team.value = team.value === name ? "" : name)}>
      <bdi>${name}</bdi> <span class="muted">${t("teams.size", { n: size })}</span>
      <span class="calling">${calling.length === 0 && html`<${Glyph} kind="ok" />`}${calling.map((kind) => html`<span key=${kind} data-kind=${kind} title=${t(`status.${kind}`)}>
        <${Glyph} kind=${kind} /><span class="unseen">${t(`status.${kind}`)}</span>${formatNumber(counts[/** @type {"help"} */ (kind)])}</span>`)}</span>
    </button></li>`;
  })}</ol>`;
}

function Exercises() {
  const { exercises } = charts.value;
  if (exercises.length === 0) return html`<p class="calm">${t("exercises.none")}</p>`;
  return html`<ol class="bars">${exercises.map(([name, begun, done]) => html`<li key=${name} data-exercise=${name}>
    <bdi>${name}</bdi><meter min="0" max=${Math.max(teamRows.value.length, 1)} value=${done}></meter>
    <span>${t("exercises.done", { done, begun })}</span>
  </li>`)}</ol>`;
}
