// @ts-check
/** What staff settle about an error group, on its page: how it is called, what else is the same mistake, whether it is muted. */
import { html } from "../preact.js";
import { mute, settle } from "../groups.js";
import { t } from "../i18n.js";
import { classroom, sharedErrors } from "../store.js";

/** @param {{courseId: string, told: any, reread: () => void}} props `told`: the group as the server tells it */
export function Settling({ courseId, told, reread }) {
  const { fingerprint, label, title, is_muted: isMuted, merged } = told;
  const name = title ?? label;
  const others = classroom.value ? sharedErrors.value.filter((one) => one.fp !== fingerprint) : [];
  const rename = (/** @type {any} */ event) => {
    event.preventDefault();
    const wanted = event.currentTarget.elements.title.value.trim() || null;
    if (wanted !== title) void settle(courseId, fingerprint, { title: wanted }, { title }, t("group.renamed", { name: wanted ?? label }), reread);
  };
  const merge = (/** @type {any} */ event) => {
    event.preventDefault();
    const into = others.find((one) => one.fp === event.currentTarget.elements.into.value);
    if (into) void settle(courseId, fingerprint, { merged_into: into.fp }, { merged_into: null }, t("group.merged_done", { name, into: into.title ?? into.label }), reread);
  };
  const separate = (/** @type {any} */ one) =>
    settle(courseId, one.fingerprint, { merged_into: null }, { merged_into: fingerprint }, t("group.separated", { name: one.label || one.fingerprint }), reread);
  return html`<section class="card" data-part="group" aria-labelledby="group-title"><h2 id="group-title">${t("group.title")}</h2>
    <p class="muted">${t("group.explain")}</p>
    <form class="ends" onSubmit=${rename}><label>${t("group.name")} <input name="title" maxlength="80" key=${title} defaultValue=${title ?? ""} placeholder=${label} autocomplete="off" /></label>
      <button data-action="rename-group">${t("group.rename")}</button></form>
    ${others.length > 0 && html`<form class="ends" onSubmit=${merge}><label>${t("group.same_as")} <select name="into">${others.map((one) => html`<option key=${one.fp} value=${one.fp}>${one.title ?? one.label}</option>`)}</select></label>
      <button data-action="merge-group">${t("group.merge")}</button></form>`}
    ${merged.length > 0 && html`<p>${t("group.contains")}</p><ul class="people">${merged.map((/** @type {any} */ one) => html`<li key=${one.fingerprint} data-merged=${one.fingerprint}>
      <code>${one.label || one.fingerprint}</code> <span class="muted">${t("shared.students", { n: one.students })}</span>
      <button data-action="separate-group" onClick=${() => separate(one)}>${t("group.separate")}</button></li>`)}</ul>`}
    <p class="ends"><button data-action="mute-group" aria-pressed=${isMuted} onClick=${() => mute(courseId, fingerprint, !isMuted, name, reread)}>${t(isMuted ? "group.unmute" : "group.mute")}</button>
      <span class="muted">${t(isMuted ? "group.is_muted" : "group.mute_explain")}</span></p>
  </section>`;
}
