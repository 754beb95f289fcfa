// @ts-check
/** A roster file: what it would do first, then, at one more word, that. */
import { ApiError, sendRoster } from "../api.js";
import { html, useState } from "../preact.js";
import { t } from "../i18n.js";
import { Problem } from "./pages.js";

const COLUMNS = "student_number,name,kana,team,seat";
const LISTS = ["added", "changed", "returned", "left", "doubtful"];

/** @param {{courseId: string, done: () => void}} props */
export function Roster({ courseId, done }) {
  const [file, setFile] = useState(/** @type {?Blob} */ (null));
  const [told, setTold] = useState(/** @type {any} */ (null));
  const [marksLeft, setMarksLeft] = useState(true);
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const send = async (/** @type {Blob} */ of, /** @type {boolean} */ isDryRun, /** @type {boolean} */ marks) => {
    setProblem(null);
    try {
      setTold(await sendRoster(courseId, of, isDryRun, marks));
      if (!isDryRun) {
        setFile(null);
        done();
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setTold(null);
      setProblem(error);
    }
  };
  const choose = (/** @type {any} */ event) => {
    const [chosen] = event.currentTarget.files;
    setTold(null);
    setFile(chosen ?? null);
    if (chosen) void send(chosen, true, marksLeft);
  };
  const mark = (/** @type {any} */ event) => {
    setMarksLeft(event.currentTarget.checked);
    if (file) void send(file, true, event.currentTarget.checked);
  };
  return html`<section class="card" data-part="roster" aria-labelledby="roster-title">
    <h2 id="roster-title">${t("roster.title")}</h2>
    <p class="muted">${t("roster.explain")}</p>
    <p><code>${COLUMNS}</code></p>
    <label>${t("roster.file")} <input type="file" accept=".csv,.txt,.tsv,text/csv" onChange=${choose} /></label>
    <label class="check"><input type="checkbox" checked=${marksLeft} onChange=${mark} /> ${t("roster.mark_left")}</label>
    ${problem && html`<${Problem} error=${problem} />`}
    ${told && html`<${Told} told=${told} />`}
    ${told?.is_dry_run && file && html`<p class="ends">
      <button class="primary" data-action="take-roster" onClick=${() => send(file, false, marksLeft)}>${t("roster.take")}</button></p>`}
  </section>`;
}

/** @param {{told: any}} props */
function Told({ told }) {
  return html`<div data-roster=${told.is_dry_run ? "preview" : "done"} role="status">
    <p><b>${t(told.is_dry_run ? "roster.would" : "roster.did")}</b></p>
    <ul class="counts">
      ${LISTS.map((name) => html`<li key=${name}>${told[name].length === 0
        ? t(`roster.${name}`, { n: 0 })
        : html`<details><summary>${t(`roster.${name}`, { n: told[name].length })}</summary>
          <ul>${told[name].map((/** @type {any} */ one) => html`<li key=${one.student_number}>${one.student_number} <bdi>${one.name}</bdi></li>`)}</ul></details>`}</li>`)}
      <li>${t("roster.unchanged", { n: told.unchanged })}</li>
    </ul>
    ${told.problems.length > 0 && html`<p><b>${t("roster.problems", { n: told.problems.length })}</b></p>
      <ul class="counts" data-problems>${told.problems.map((/** @type {any} */ one) => html`<li key=${one.line}>${t("roster.line", { line: one.line })} ${one.title} <code>${one.code}</code> <span class="muted">${one.todo}</span></li>`)}</ul>`}
    ${told.ignored.length > 0 && html`<p class="muted">${t("roster.ignored", { columns: told.ignored.join(", ") })}</p>`}
  </div>`;
}
