// @ts-check
/** One cell over the class: figures, the answers that are equal, and everybody's newest answer. */
import { ApiError, fetchCell } from "../api.js";
import { html, useEffect, useRef, useState } from "../preact.js";
import { formatNumber, formatWait, t } from "../i18n.js";
import { useClass } from "./live.js";
import { Problem, Refused } from "./pages.js";
import { cellName, Ending, formatMoment, NotCollected, StudentLink, Text, WorkPage } from "./work.js";

const PAGE = 25;
const TYPING_MS = 300;
const STATES = ["all", "ok", "error", "none"];
const ORDERS = ["time", "length", "runs"];

/** @typedef {{q: string, state: string, sort: string, skip: number}} Asked */

/** @param {{courseId: string, title: string, item: string}} props `item`: the notebook's id, a slash, the cell's id */
export function CellPage({ courseId, title, item }) {
  const [notebookId, cellId] = [item.slice(0, item.indexOf("/")), item.slice(item.indexOf("/") + 1)];
  const [asked, setAsked] = useState(/** @type {Asked} */ ({ q: "", state: "all", sort: "time", skip: 0 }));
  const [told, setTold] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const newest = useRef(0);
  const read = async () => {
    const number = ++newest.current; // an answer to an earlier question may come after that to a later one
    try {
      const answer = await fetchCell(courseId, notebookId, { cell: cellId, q: asked.q, state: asked.state, sort: asked.sort, skip: String(asked.skip), limit: String(PAGE) });
      if (number !== newest.current) return;
      setTold(answer);
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (number === newest.current) setProblem(error);
    }
  };
  useEffect(() => {
    const timer = setTimeout(read, told ? TYPING_MS : 0);
    return () => clearTimeout(timer);
  }, [courseId, item, asked]);
  useClass(courseId, notebookId);
  if (problem && !told) return html`<${Refused} error=${problem} />`;
  const page = { name: "cell", title: told ? html`${cellName(told.cell.cell_index)}${told.cell.title && html` · <bdi>${told.cell.title}</bdi>`}` : "", courseId, course: title };
  if (!told) return html`<${WorkPage} ...${page} />`;
  const tools = html`<button data-action="refresh" onClick=${read}>${t("cell.refresh")}</button>`;
  return html`<${WorkPage} ...${page} tools=${tools}>
    ${problem && html`<${Problem} error=${problem} />`}
    <p class="muted"><bdi>${told.cell.notebook_title || told.cell.path}</bdi>${told.cell.exercise_id && html` · ${t("cell.exercise")} <bdi>${told.cell.exercise_id}</bdi>`}</p>
    <${Figures} figures=${told.figures} span=${told.span} />
    ${told.cell.original !== null && html`<details class="card" data-part="original"><summary>${t("cell.original")}</summary><${Text} text=${told.cell.original} label=${t("cell.original")} /></details>`}
    <${Groups} courseId=${courseId} told=${told} />
    <${Answers} courseId=${courseId} told=${told} asked=${asked} ask=${(/** @type {Partial<Asked>} */ change) => setAsked({ ...asked, skip: 0, ...change })} />
  <//>`;
}

/** @param {{figures: any, span: any}} props */
function Figures({ figures, span }) {
  const { ok, error, running, none } = figures.states;
  /** @param {?number[]} values @param {(value: number) => string} write */
  const quartiles = (values, write) => (values ? t("cell.quartiles", { low: write(values[0]), median: write(values[1]), high: write(values[2]) }) : t("cell.no_figure"));
  return html`<section class="card" data-part="figures" aria-labelledby="figures-title"><h2 id="figures-title">${t("cell.figures")}</h2>
    <p class="ends">${Object.entries({ ok, error, running, none }).map(([state, n]) => html`<span key=${state} data-count=${state}><${Ending} status=${state} /> <b>${formatNumber(n)}</b></span>`)}</p>
    <dl class="facts">
      <div><dt>${t("cell.time")}</dt><dd data-figure="time">${quartiles(figures.time_ms, formatWait)}</dd></div>
      <div><dt>${t("cell.tries")}</dt><dd data-figure="tries">${quartiles(figures.tries, (value) => String(formatNumber(Math.round(value * 10) / 10)))}</dd></div>
    </dl>
    <p class="muted">${t("cell.since", { time: formatMoment(span.start) })}</p></section>`;
}

/** @param {{courseId: string, told: any}} props */
function Groups({ courseId, told }) {
  const { groups, group_count: count, collects } = told;
  return html`<section class="card" data-part="groups" aria-labelledby="groups-title"><h2 id="groups-title">${t("cell.groups", { n: count })}</h2>
    <${NotCollected} collects=${collects} />
    ${groups.length === 0 && collects.source && html`<p class="muted">${t("cell.no_answers")}</p>`}
    ${groups.length > 0 && told.cell.original === null && html`<p class="muted">${t("cell.no_original")}</p>`}
    <ol class="answers">${groups.map((/** @type {any} */ group, /** @type {number} */ place) => html`<li key=${place} data-group=${group.count}>
      <p class="ends"><b>${t("cell.group", { n: group.count })}</b> <span class="muted">${t("cell.group_ok", { n: group.ok })}</span></p>
      ${group.diff ? html`<${Diff} lines=${group.diff} />` : html`<${Text} text=${group.source} label=${t("work.source")} />`}
      <p class="ends">${group.students.map((/** @type {any} */ one) => html`<${StudentLink} key=${one.user_id} courseId=${courseId} student=${one} />`)}
        ${group.count > group.students.length && html`<span class="muted">${t("attention.more", { n: group.count - group.students.length })}</span>`}</p>
    </li>`)}</ol>
    ${count > groups.length && html`<p class="muted">${t("cell.more_groups", { n: count - groups.length })}</p>`}
  </section>`;
}

/** What became of the teacher's cell. @param {{lines: [string, string][]}} props */
function Diff({ lines }) {
  return html`<div class="diff" tabindex="0" role="group" aria-label=${t("cell.diff")}>${lines.map(([sign, text], place) => html`<code key=${place} data-sign=${sign}>
    ${sign !== "=" && html`<span class="unseen">${t(sign === "-" ? "cell.removed" : "cell.added")}</span>`}${text}</code>`)}</div>`;
}

/** @param {{courseId: string, told: any, asked: Asked, ask: (change: Partial<Asked>) => void}} props */
function Answers({ courseId, told, asked, ask }) {
  const [from, to] = [asked.skip + 1, asked.skip + told.students.length];
  return html`<section class="card" data-part="answers" aria-labelledby="answers-title"><h2 id="answers-title">${t("cell.answers")}</h2>
    <div class="filters">
      <label>${t("cell.search")}<input type="search" value=${asked.q} maxlength="200" onInput=${(/** @type {any} */ e) => ask({ q: e.target.value })} /></label>
      <label>${t("cell.state")}<select value=${asked.state} onChange=${(/** @type {any} */ e) => ask({ state: e.target.value })}>${STATES.map((one) => html`<option key=${one} value=${one} selected=${one === asked.state}>${t(`filter.${one}`)}</option>`)}</select></label>
      <label>${t("cell.sort")}<select value=${asked.sort} onChange=${(/** @type {any} */ e) => ask({ sort: e.target.value })}>${ORDERS.map((one) => html`<option key=${one} value=${one} selected=${one === asked.sort}>${t(`order.${one}`)}</option>`)}</select></label>
    </div>
    <p role="status" class="muted" data-count-answers=${told.count}>${told.count ? t("cell.shown", { from, to, n: told.count }) : t("grid.no_match")}</p>
    <ol class="answers">${told.students.map((/** @type {any} */ one) => html`<li key=${one.user_id} data-answer=${one.user_id}>
      <p class="ends"><b><${StudentLink} courseId=${courseId} student=${one} /></b><${Ending} status=${one.state} />
        ${one.last_at && html`<time>${formatMoment(one.last_at)}</time><span class="muted">${t("cell.runs", { n: one.runs, errors: one.errors })}</span>`}</p>
      <${Text} text=${one.source} label=${t("work.source")} /><${Text} text=${one.output} label=${t("work.output")} />
    </li>`)}</ol>
    <p class="ends">
      ${asked.skip > 0 && html`<button data-action="earlier" onClick=${() => ask({ skip: Math.max(0, asked.skip - PAGE) })}>${t("cell.earlier")}</button>`}
      ${to < told.count && html`<button data-action="later" onClick=${() => ask({ skip: asked.skip + PAGE })}>${t("cell.later")}</button>`}
    </p>
  </section>`;
}
