// @ts-check
/** One error group: who has it now, since when, where, in which words; and what became of a word to all of them. */
import { fetchBatches, fetchError } from "../api.js";
import { html, useState } from "../preact.js";
import { useReread } from "../reread.js";
import { formatNumber, t } from "../i18n.js";
import { announced, cellNumbers, classroom, sharedErrors } from "../store.js";
import { useClass } from "./live.js";
import { Settling } from "./error_group.js";
import { Problem, Refused } from "./pages.js";
import { cellPath } from "./paths.js";
import { announce, Outcome } from "./shared.js";
import { cellName, formatMoment, NotCollected, StudentLink, Text, WorkPage } from "./work.js";

const REFRESH_MS = 5_000;

/** @param {{courseId: string, title: string, item: string}} props `item`: the fingerprint */
export function ErrorPage({ courseId, title, item: fingerprint }) {
  const [told, setTold] = useState(/** @type {any} */ (null));
  const [batches, setBatches] = useState(/** @type {any[]} */ ([]));
  useClass(courseId, told?.cells[0]?.notebook_id ?? null);
  const isLive = Boolean(classroom.value);
  const read = async () => {
    const [error, sent] = await Promise.all([fetchError(courseId, fingerprint), isLive ? fetchBatches() : { batches: [] }]);
    setTold(error);
    const own = new Set([fingerprint, error.fingerprint, ...error.merged.map((/** @type {any} */ one) => one.fingerprint)]);
    setBatches(sent.batches.filter((/** @type {any} */ one) => own.has(one.error_fingerprint)));
  };
  const { problem, reread } = useReread(read, REFRESH_MS, [courseId, fingerprint, isLive, announced.value]);
  if (problem && !told) return html`<${Refused} error=${problem} />`;
  const page = { name: "error", title: told?.title ? html`<bdi>${told.title}</bdi>` : html`<code>${told?.label}</code>`, courseId, course: title };
  if (!told) return html`<${WorkPage} ...${page} />`;
  // As the live list has it where it is shared; with fewer the same dialog writes to whoever has it.
  const live = (isLive && sharedErrors.value.find((one) => one.fp === told.fingerprint)) || { fp: told.fingerprint, label: told.label, n: told.now.length, cell: told.cells[0]?.cell_id, since: 0, title: told.title, merged: told.merged.length };
  const tools = html`<button class="primary" data-act="announce" disabled=${!isLive || told.now.length === 0} onClick=${() => announce(live, cellNumbers.value.get(live.cell))}>${t("shared.announce")}</button>`;
  return html`<${WorkPage} ...${page} tools=${tools}>
    ${problem && html`<${Problem} error=${problem} />`}
    <p class="muted">${t("error.version", { version: told.version })} <code data-fingerprint>${told.fingerprint}</code>${told.title && html` <code>${told.label}</code>`}</p>
    <section class="card" data-part="now" aria-labelledby="now-title"><h2 id="now-title">${t("error.now", { n: told.now.length })}</h2>
      ${told.now.length === 0 && html`<p class="muted">${t("error.nobody")}</p>`}
      ${told.now.length > 0 && html`<ul class="people">${told.now.map((/** @type {any} */ one) => html`<li key=${one.user_id}><${StudentLink} courseId=${courseId} student=${one} /><span class="muted">${t("error.last_at", { time: formatMoment(one.at) })}</span></li>`)}</ul>`}
      ${batches.map((one) => html`<p key=${one.batch_id} data-batch=${one.batch_id}><bdi>${typeof one.text === "string" ? one.text : one.text[document.documentElement.lang]}</bdi> <${Outcome} of=${one} /></p>`)}
    </section>
    <${Settling} courseId=${courseId} told=${told} reread=${reread} />
    <section class="card" data-part="history" aria-labelledby="history-title"><h2 id="history-title">${t("error.history")}</h2>
      ${told.first_at && html`<p>${t("error.met", { students: told.students, runs: told.runs, first: formatMoment(told.first_at), last: formatMoment(told.last_at) })}${told.is_cut && ` ${t("error.is_cut")}`}</p>`}
      <${Spark} trend=${told.trend} />
      <ul class="people">${told.cells.map((/** @type {any} */ cell) => html`<li>${cell.notebook_id && cell.cell_id ? html`<a href=${cellPath(courseId, cell.notebook_id, cell.cell_id)} data-cell-link>${cellName(cell.cell_index)}</a>` : cellName(cell.cell_index)}
        <span class="muted">${t("error.in_cell", { students: cell.students, runs: cell.runs })}</span></li>`)}</ul>
    </section>
    <section class="card" data-part="examples" aria-labelledby="examples-title"><h2 id="examples-title">${t("error.examples")}</h2>
      <${NotCollected} collects=${{ ...told.collects, source: true, output: true }} />
      <ol class="answers">${told.examples.map((/** @type {any} */ one, /** @type {number} */ place) => html`<li key=${place} data-example>
        <p class="ends"><${StudentLink} courseId=${courseId} student=${one.student} /><time>${formatMoment(one.at)}</time><span class="muted">${t("error.times", { n: one.count })}</span></p>
        <${Text} text=${one.message && `${one.error_name}: ${one.message}`} label=${t("work.error")} /><${Text} text=${one.traceback} label=${t("work.traceback")} />
      </li>`)}</ol>
    </section>
  <//>`;
}

/** How often it was met of late. @param {{trend: {minutes: number, counts: number[]}}} props */
function Spark({ trend: { minutes, counts } }) {
  const most = Math.max(1, ...counts);
  const words = t("error.trend", { minutes: minutes * counts.length, step: minutes, runs: counts.reduce((sum, one) => sum + one, 0), most: Math.max(...counts) });
  return html`<figure class="text"><figcaption>${words}</figcaption>
    <svg class="spark" viewBox=${`0 0 ${counts.length * 10} 40`} preserveAspectRatio="none" role="img" aria-label=${`${words} ${counts.map(formatNumber).join(" ")}`}>
      ${counts.map((one, place) => html`<rect x=${place * 10 + 1} width="8" y=${40 - Math.max(one ? 2 : 0.6, (38 * one) / most)} height=${Math.max(one ? 2 : 0.6, (38 * one) / most)} />`)}
    </svg></figure>`;
}
