// @ts-check
/** Errors that several students have now: how many, where; a word to all of them, and whether it helped, also once it has. */
import { html, useEffect, useState } from "../preact.js";
import { fetchBatches } from "../api.js";
import { draft, formatNumber, formatWait, language, t } from "../i18n.js";
import { mute } from "../groups.js";
import { announced, cellNumbers, course, isPast, mutedGroups, now, sharedErrors, talk } from "../store.js";
import { Glyph } from "./glyph.js";
import { errorPath } from "./paths.js";

const LOOK_EVERY_MS = 5_000;
const TOLD_OF_MS = 3_600_000;
/** Errors whose label names what is missing, as "NameError df". */
const DRAFTS = { NameError: "draft.name", ModuleNotFoundError: "draft.module", KeyError: "draft.key" };

/** @typedef {import("../state.js").SharedError} SharedError */

export function Shared() {
  const errors = sharedErrors.value;
  const outcomes = useOutcomes();
  const shared = new Set(errors.map((error) => error.fp));
  const over = Object.values(outcomes).filter((one) => !shared.has(one.error_fingerprint));
  return html`<section class="shared panel" aria-labelledby="shared-title">
    <header class="panel-head">
      <h2 id="shared-title">${t("shared.title")}</h2>
      <span class="count">${formatNumber(errors.length)}</span>
      <button class="chip plain" data-act="announce-all" onClick=${() => (talk.value = { key: "all", drafts: ["", ""] })}>${t("shared.to_class")}</button>
    </header>
    ${errors.length + over.length === 0 ? html`<p class="calm">${t("shared.none")}</p>` : html`<ol class="entries" tabindex="0" aria-labelledby="shared-title">
      ${errors.map((error) => html`<${Item} key=${error.fp} error=${error} outcome=${outcomes[error.fp]} />`)}
      ${over.map((one) => html`<li key=${one.batch_id} class="shared-error over" data-over=${one.error_fingerprint}>
        <bdi>${typeof one.text === "string" ? one.text : one.text[language.value]}</bdi><${Outcome} of=${one} />
      </li>`)}
    </ol>`}
    ${mutedGroups.value.length > 0 && html`<${Muted} />`}
  </section>`;
}

/** What staff have muted, with the way back. */
function Muted() {
  return html`<details class="muted-groups" data-muted=${mutedGroups.value.length}><summary>${t("group.muted_list", { n: mutedGroups.value.length })}</summary>
    <ul class="entries">${mutedGroups.value.map((one) => {
      const cell = cellNumbers.value.get(one.cell ?? "");
      const place = cell ? t("attention.at_cell", { cell }) : "";
      const name = one.title ?? one.label ?? (place || t("group.nobody"));
      return html`<li key=${one.fp} class="shared-error" data-muted-group=${one.fp}>
        <b>${one.n > 0 && t("shared.students", { n: one.n })}</b>
        ${one.cell && !one.label ? html`<span>${t("group.whole_cell", { cell: cell ?? "?" })}</span>` : html`<a href=${errorPath(course.value.id, one.fp)}><bdi>${name}</bdi></a>`}
        <span class="muted">${one.label && place}</span>
        <button data-act="unmute-group" aria-label=${`${t("group.unmute")}: ${name}`} onClick=${() => mute(course.value.id, one.fp, false, name)}>${t("group.unmute")}</button>
      </li>`;
    })}</ul></details>`;
}

/** @param {{error: SharedError, outcome: any}} props */
function Item({ error, outcome }) {
  const cell = cellNumbers.value.get(error.cell);
  return html`<li class="shared-error" data-shared=${error.fp} data-students=${error.n}>
    <b>${t("shared.students", { n: error.n })}</b>
    <a href=${errorPath(course.value.id, error.fp)} data-error-link title=${error.label}>${error.title ? html`<bdi>${error.title}</bdi>` : html`<code>${error.label}</code>`}</a>
    <span class="muted">${error.merged > 0 && html`<span title=${t("group.merged", { n: error.merged })}>+${formatNumber(error.merged)}<span class="unseen"> ${t("group.merged", { n: error.merged })}</span></span> `}${cell && t("attention.at_cell", { cell })}</span>
    <span class="tools"><button data-act="announce" onClick=${() => announce(error, cell)}>${t("shared.announce")}</button>
      <button data-act="mute-error" title=${t("group.mute_explain")} aria-label=${`${t("group.mute")}: ${error.title ?? error.label}`} onClick=${() => mute(course.value.id, error.fp, true, error.title ?? error.label)}><${Glyph} kind="mute" /></button></span>
    ${outcome && html`<${Outcome} of=${outcome} />`}
  </li>`;
}

/** @param {{of: any}} props a batch */
export function Outcome({ of: { batch_id: id, passed, recipients: n, at } }) {
  const wait = formatWait(now.value - Date.parse(at));
  return html`<span class="outcome" data-outcome=${id}>${t("shared.outcome", { passed: passed ?? 0, n, wait })}</span>`;
}

/** @param {SharedError} error @param {number|undefined} cell */
export async function announce(error, cell) {
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
    if (isPast.value) return; // what is known of announcements is of today
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
