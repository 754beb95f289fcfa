// @ts-check
/** Errors that several students have now: how many, where; a word to all of them, and whether it helped. */
import { html, useEffect, useState } from "../preact.js";
import { fetchBatches } from "../api.js";
import { draft } from "../i18n.js";
import { formatNumber, formatWait, t } from "../i18n.js";
import { announced, cellNumbers, now, sharedErrors, talk } from "../store.js";

const LOOK_EVERY_MS = 5_000;
const TOLD_OF_MS = 3_600_000;
/** Errors whose label names what is missing, as "NameError df". */
const DRAFTS = { NameError: "draft.name", ModuleNotFoundError: "draft.module", KeyError: "draft.key" };

/** @typedef {import("../state.js").SharedError} SharedError */

export function Shared() {
  const errors = sharedErrors.value;
  const outcomes = useOutcomes();
  return html`<section class="shared panel" aria-labelledby="shared-title">
    <header class="panel-head">
      <h2 id="shared-title">${t("shared.title")}</h2>
      <span class="count">${formatNumber(errors.length)}</span>
      <button class="chip plain" data-act="announce-all" onClick=${() => (talk.value = { key: "all", drafts: ["", ""] })}>${t("shared.to_class")}</button>
    </header>
    ${errors.length === 0 ? html`<p class="calm">${t("shared.none")}</p>` : html`<ol class="entries" tabindex="0" aria-labelledby="shared-title">
      ${errors.map((error) => html`<${Item} key=${error.fp} error=${error} outcome=${outcomes[error.fp]} />`)}
    </ol>`}
  </section>`;
}

/** @param {{error: SharedError, outcome: any}} props */
function Item({ error, outcome }) {
  const cell = cellNumbers.value.get(error.cell);
  return html`<li class="shared-error" data-shared=${error.fp} data-students=${error.n}>
    <b>${t("shared.students", { n: error.n })}</b>
    <code>${error.label}</code>
    ${cell && html`<span class="muted">${t("attention.at_cell", { cell })}</span>`}
    <time class="muted">${formatWait(now.value - error.since)}</time>
    <button data-act="announce" onClick=${() => announce(error, cell)}>${t("shared.announce")}</button>
    ${outcome && html`<span class="outcome" data-outcome=${outcome.batch_id}>
      ${t("shared.outcome", { passed: outcome.passed ?? 0, n: outcome.recipients, wait: formatWait(now.value - Date.parse(outcome.at)) })}
    </span>`}
  </li>`;
}

/** @param {SharedError} error @param {number|undefined} cell */
async function announce(error, cell) {
  const [kind, name] = error.label.split(" ");
  const key = (name && DRAFTS[/** @type {keyof DRAFTS} */ (kind)]) || "draft.other";
  const words = { n: error.n, name: name ?? "", label: error.label, cell: cell ?? "?" };
  const drafts = await Promise.all(["ja", "en"].map((lang) => draft(lang, key, words)));
  talk.value = { key: error.fp, error, drafts };
}

/** What became of the newest announcement about each error: fingerprint -> batch. @returns {Record<string, any>} */
function useOutcomes() {
  const [outcomes, setOutcomes] = useState(/** @type {Record<string, any>} */ ({}));
  useEffect(() => {
    const look = async () => {
      const { batches } = await fetchBatches();
      const told = batches.filter((/** @type {any} */ one) => one.error_fingerprint && now.peek() - Date.parse(one.at) < TOLD_OF_MS);
      // Newest first, so the newest is written last.
      setOutcomes(Object.fromEntries(told.reverse().map((/** @type {any} */ one) => [one.error_fingerprint, one])));
    };
    const ask = () => look().catch((error) => console.warn(error)); // the next look tells
    ask();
    const timer = setInterval(() => !document.hidden && ask(), LOOK_EVERY_MS);
    return () => clearInterval(timer);
  }, [announced.value]);
  return outcomes;
}
