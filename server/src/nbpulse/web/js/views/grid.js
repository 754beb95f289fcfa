// @ts-check
/**
 * The class as it sits: one row per student, one square per cell, in an order that never changes.
 * Rows are rendered by the view library, squares by hand: a frame touches only the squares that changed.
 * A square says its state in `data-state`: 0 not run, 1 ok, 2 running, 3 error, 4 stuck.
 */
import { Component, html, memo, useEffect, useRef, useState } from "../preact.js";
import { formatClock, formatWait, language, t } from "../i18n.js";
import { cellNumberAt, SQUARE_NAMES } from "../state.js";
import { cells, charts, classroom, course, gaps, isNamed, lessonColumn, link, minute, rows, searchText, section, selected, shownRows, team, teamRows, zoom } from "../store.js";
import { describeEntry, Funnel } from "./funnel.js";
import { Glyph } from "./glyph.js";
import { Lesson } from "./lesson.js";
import { cellPath, studentPath } from "./paths.js";

/** @typedef {import("../state.js").Row} Row */
/** @typedef {import("../state.js").Cell} Cell */
/** @typedef {{row: ?Row, column: number, isFunnel?: boolean}} Spot column -1 is the name */

const SCROLLBAR_PX = 16;
const PITCH_LEAST_PX = [8, 12, 24]; // by zoom
const PITCH_MOST_PX = [20, 34, 48];
const EACH_NUMBERED = 24; // so few columns are wide enough for a number each
const NUMBER_PX = 16; // a column's number needs so much
const GROUP_GAP_PX = 4; // after each fifth column

export function Grid() {
  const panel = useRef(/** @type {any} */ (null));
  const [spot, setSpot] = useState(/** @type {Spot} */ ({ row: null, column: -1 }));
  const columns = cells.value;
  const at = lessonColumn.value;
  useEffect(() => {
    panel.current.style.setProperty("--at", String(at));
    panel.current.style.setProperty("--at-group", String(Math.floor(at / 5)));
  }, [at]);
  useEffect(() => fitSquares(panel.current, columns.length, zoom.value), [columns.length, zoom.value]);
  useEffect(() => {
    if (section.value) panel.current.querySelector('.head [data-section="true"]')?.scrollIntoView({ block: "nearest", inline: "start" });
  }, [section.value]);
  useEffect(() => {
    if (selected.value === null) return;
    panel.current.querySelector('[data-selected="true"]')?.scrollIntoView({ block: "center" });
  }, [selected.value]);
  const live = spot.row && shownRows.value.length > 0 && rows.value[spot.row.i];
  const pointed = spot.isFunnel && columns[spot.column] && `${cellTitle(columns[spot.column])} — ${describeEntry(charts.value.funnel[spot.column])}`;
  const readout = live ? describeSpot(live, spot.column, columns) : pointed || (columns.length ? "" : t("grid.no_cells"));
  const clear = () => {
    searchText.value = "";
    team.value = "";
  };
  return html`<section class="grid-panel panel" ref=${panel} aria-labelledby="grid-title" data-link=${link.value.phase} data-zoom=${zoom.value} data-lesson=${at >= 0}>
    <header class="panel-head">
      <h2 id="grid-title">${t("grid.title")}</h2>
      <span class="count" data-row-count=${shownRows.value.length}>${t("grid.students", { n: shownRows.value.length })}</span>
      <${Lesson} />
      <output class="readout">${readout}</output>
    </header>
    ${shownRows.value.length === 0
      ? html`<p class="calm">${t("grid.no_match")} <button onClick=${clear}>${t("grid.clear")}</button></p>`
      : html`<div
          class="grid" role="grid" tabindex="0" aria-labelledby="grid-title"
          aria-rowcount=${shownRows.value.length + 2} aria-colcount=${columns.length + 1}
          onKeyDown=${moveFocus} onFocusIn=${(/** @type {any} */ e) => setSpot(spotOf(e.target))}
          onPointerOver=${(/** @type {any} */ e) => setSpot(spotOf(e.target))}
          onPointerLeave=${() => setSpot({ row: null, column: -1 })}
        >
          <${Header} columns=${columns} section=${section.value} at=${at} />
          <${Funnel} funnel=${charts.value.funnel} columns=${columns} size=${teamRows.value.length} />
          ${shownRows.value.map((/** @type {Row} */ row) => html`<${Line}
            key=${row.id} row=${row} columns=${columns} isNamed=${isNamed.value} isSelected=${selected.value === row.i}
            minute=${row.st === "ok" ? 0 : minute.value} gap=${describeGap(gaps.value[row.id])}
          />`)}
        </div>`}
    <${Legend} />
  </section>`;
}

const Header = memo(({ columns, section, at }) => html`<div class="row head" role="row">
  <div class="who" role="columnheader">${t("grid.student")}</div>
  <div class="squares" role="none">
    ${columns.map((/** @type {Cell} */ cell, /** @type {number} */ column) => html`<span role="columnheader" key=${cell.id} data-head=${cell.id} data-lesson=${column === at}
      aria-label=${column === at ? `${cellTitle(cell)}: ${t("lesson.here")}` : cellTitle(cell)} data-section=${section !== "" && cell.title === section}>
      <a tabindex="-1" href=${pathOf(cell.id)}>${column === 0 || column === at || (column + 1) % 5 === 0 || columns.length <= EACH_NUMBERED ? cell.idx + 1 : html`<b class="unseen">${cell.idx + 1}</b>`}</a>
    </span>`)}
  </div>
</div>`);

const Line = memo(({ row, columns, isNamed, isSelected, minute, gap }) => html`<div
  class="row" role="row" data-student=${row.id} data-st=${row.st} data-selected=${isSelected} data-pos=${row.pos}
>
  <div class="who" role="rowheader" tabindex="-1" data-i=${row.i} aria-label=${`${describeRow(row, columns, minute)} ${gap}`.trim()}>
    <span class="state" title=${row.quiet ? t("grid.quiet", { time: formatClock(row.quiet).slice(0, 5) }) : null}>
      ${row.st !== "ok" ? html`<${Glyph} kind=${row.st} />` : row.quiet ? html`<${Glyph} kind="later" />` : null}
    </span>
    <a class="name" tabindex="-1" href=${studentPath(course.peek().id, row.id)}><bdi>${isNamed ? row.name : row.num}</bdi></a>
    ${gap && html`<span class="gap" title=${gap} aria-hidden="true">…</span>`}
    ${row.do && html`<span class="doing" data-doing=${row.do} title=${t(`doing.${row.do}`)}><${Glyph} kind=${row.do} /></span>`}
    <span class="pos">${cellNumberAt(columns, row.pos) || ""}</span>
  </div>
  <${Squares} s=${row.s} columns=${columns} />
</div>`);

/** The squares of one row; patches its own elements instead of rendering. */
class Squares extends Component {
  /** @type {{current: any}} */
  line = { current: null };
  /** @param {{s: string, columns: Cell[]}} next */
  shouldComponentUpdate(next) {
    const { s, columns } = this.props;
    if (next.columns !== columns) this.fill(next.columns, next.s);
    else if (next.s !== s) this.patch(s, next.s);
    return false;
  }
  componentDidMount() {
    this.fill(this.props.columns, this.props.s);
  }
  /** @param {Cell[]} columns @param {string} s */
  fill(columns, s) {
    this.line.current.replaceChildren(squaresFor(columns).cloneNode(true));
    this.patch("0".repeat(columns.length), s);
  }
  /** @param {string} before @param {string} after */
  patch(before, after) {
    const squares = this.line.current.children;
    for (let column = 0; column < after.length; column++) {
      if (after[column] !== before[column]) squares[column].setAttribute("data-state", after[column]);
    }
  }
  render() {
    return html`<div class="squares" role="none" ref=${this.line}></div>`;
  }
}

/** @type {WeakMap<Cell[], DocumentFragment>} */
const templates = new WeakMap();

/** @param {Cell[]} columns */
function squaresFor(columns) {
  let template = templates.get(columns);
  if (!template) {
    template = document.createDocumentFragment();
    for (const cell of columns) {
      const square = document.createElement("i");
      square.setAttribute("role", "gridcell");
      square.setAttribute("tabindex", "-1");
      square.dataset.cell = cell.id;
      square.dataset.state = "0";
      template.append(square);
    }
    templates.set(columns, template);
  }
  return template;
}

function Legend() {
  return html`<footer class="legend">
    ${SQUARE_NAMES.map((name, digit) => html`<span key=${name}><i data-state=${digit}></i>${t(`square.${name}`)}</span>`)}
  </footer>`;
}

/** A column's cell, on its page. @param {string} cellId */
const pathOf = (cellId) => cellPath(course.peek().id, classroom.peek()?.notebook?.id ?? "", cellId);

/** @param {Cell} cell */
function cellTitle(cell) {
  const place = t("attention.at_cell", { cell: cell.idx + 1 });
  return cell.title ? `${place}: ${cell.title}` : place;
}

/** @param {Row} row @param {Cell[]} columns @param {number} at */
function describeRow(row, columns, at) {
  const [pos, total] = [row.pos, columns.length].map((column) => cellNumberAt(columns, column));
  const wait = row.st === "ok" || !row.since ? "" : formatWait(Math.max(0, at - row.since));
  const name = isNamed.peek() ? row.name : row.num;
  const summary = t("grid.row_summary", { name, pos, total, status: t(`status.${row.st}`), wait }).trim();
  return row.do ? `${summary} · ${t(`doing.${row.do}`)}` : summary;
}

/** What of a student's data is missing, in words; "" where nothing is. @param {import("../api.js").Sign[] | undefined} signs */
export function describeGap(signs) {
  if (!signs) return "";
  const what = signs.map(({ sign, count, off_s }) => t(`gap.${sign}`, { n: count, minutes: Math.round(Math.abs(off_s ?? 0) / 60) }));
  return t("grid.gap", { what: new Intl.ListFormat(language.value, { type: "unit" }).format(what) });
}

/** @param {Row} row @param {number} column @param {Cell[]} columns */
function describeSpot(row, column, columns) {
  const summary = describeRow(row, columns, minute.peek());
  if (column < 0 || !columns[column]) return summary;
  return `${summary} — ${cellTitle(columns[column])}: ${t(`square.${SQUARE_NAMES[+row.s[column]]}`)}`;
}

/** @param {HTMLElement} target @returns {Spot} */
function spotOf(target) {
  const line = target.closest("[data-student], .funnel");
  const i = line?.querySelector(".who")?.getAttribute("data-i");
  const row = i === null || i === undefined ? null : rows.peek()[+i];
  const square = target.closest("[data-cell]");
  const column = square ? [...(square.parentElement?.children ?? [])].indexOf(square) : -1;
  if (row && column >= 0) target.ariaLabel = describeSpot(row, column, cells.peek());
  return { row, column, isFunnel: Boolean(line && !row) };
}

/** @type {Record<string, [number, number]>} rows down, columns right */
const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], PageDown: [15, 0], PageUp: [-15, 0] };

/** One tab stop; arrows walk over names and squares. @param {KeyboardEvent & {currentTarget: HTMLElement}} event */
function moveFocus(event) {
  const from = /** @type {HTMLElement} */ (event.target);
  const lines = [...event.currentTarget.querySelectorAll("[data-student], .funnel")];
  const spots = (/** @type {Element} */ of) => [...of.querySelectorAll(".who, [data-cell]")];
  const line = from.closest("[data-student], .funnel");
  const [at, column] = line ? [lines.indexOf(line), spots(line).indexOf(from)] : [-1, 0];
  if (event.key === "Enter" && line && !from.matches("a")) {
    const { cell } = from.dataset;
    return location.assign(event.shiftKey && cell ? pathOf(cell) : studentPath(course.peek().id, /** @type {any} */ (line).dataset.student));
  }
  const [down, right] = STEPS[event.key] ?? [0, 0];
  const target = { Home: [at, 0], End: [at, Infinity] }[event.key] ?? (down || right ? [at + down, column + right] : null);
  if (!target) return;
  event.preventDefault();
  const wanted = spots(lines[Math.min(Math.max(target[0], 0), lines.length - 1)]);
  const next = /** @type {HTMLElement} */ (wanted[Math.min(Math.max(target[1], 0), wanted.length - 1)]);
  next.focus();
  next.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** Makes squares as wide as the panel allows; returns the undo. @param {HTMLElement} panel @param {number} count @param {number} size */
function fitSquares(panel, count, size) {
  const fit = () => {
    const nameWidth = Number.parseFloat(getComputedStyle(panel).getPropertyValue("--who"));
    const room = panel.clientWidth - SCROLLBAR_PX - nameWidth - Math.floor(count / 5) * GROUP_GAP_PX;
    const pitch = Math.min(PITCH_MOST_PX[size], Math.max(PITCH_LEAST_PX[size], Math.floor(room / Math.max(count, 1))));
    panel.style.setProperty("--pitch", `${pitch}px`);
    panel.dataset.dense = String(pitch < NUMBER_PX);
    panel.dataset.overflow = String(pitch * count > room); // sticky names cost paint: only where one can scroll sideways
  };
  const observer = new ResizeObserver(fit);
  observer.observe(panel);
  return () => observer.disconnect();
}
