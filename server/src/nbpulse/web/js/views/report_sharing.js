// @ts-check
/** Links to a class report for readers outside the staff: made, listed, taken back. */
import { ApiError, fetchShares, revokeShare, shareReport } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { formatDay, t } from "../i18n.js";
import { Command, Problem } from "./pages.js";

const DAYS = [7, 30, 90, 365];

/** @param {{courseId: string, meetingId: string}} props */
export function Sharing({ courseId, meetingId }) {
  const [shares, setShares] = useState(/** @type {any[]} */ ([]));
  const [link, setLink] = useState("");
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const run = async (/** @type {() => Promise<any>} */ work) => {
    try {
      setProblem(null);
      await work();
      setShares((await fetchShares(courseId, meetingId)).shares);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  useEffect(() => void run(async () => undefined), [courseId, meetingId]);
  const submit = (/** @type {any} */ event) => {
    event.preventDefault();
    const days = Number(event.currentTarget.elements.days.value);
    void run(async () => setLink(`${location.origin}/shared/report#${(await shareReport(courseId, meetingId, days)).code}`));
  };
  const revoke = (/** @type {string} */ id) => {
    setLink("");
    void run(() => revokeShare(courseId, meetingId, id));
  };
  return html`<section class="card screen" data-part="sharing" aria-labelledby="sharing-title">
    <h2 id="sharing-title">${t("sharing.title")}</h2>
    <p>${t("sharing.explain")}</p>
    ${problem && html`<${Problem} error=${problem} />`}
    <form class="fields" onSubmit=${submit}>
      <label>${t("sharing.days")} <select name="days">${DAYS.map((days) => html`<option key=${days} value=${days} selected=${days === 30}>${t("sharing.for_days", { n: days })}</option>`)}</select></label>
      <button class="primary" data-action="share">${t("people.make_link")}</button>
    </form>
    ${link && html`<div role="status"><p>${t("sharing.once")}</p><${Command} text=${link} /></div>`}
    ${shares.length > 0 && html`<ul class="people" data-shares>${shares.map((one) => html`<li key=${one.id}>
      <span>${t("sharing.until", { day: formatDay(new Date(one.expires_at)) })} <span class="muted">${one.opened_count ? t("sharing.opened", { n: one.opened_count, day: formatDay(new Date(one.opened_at)) }) : t("sharing.never_opened")}</span></span>
      <button data-action="revoke-share" onClick=${() => revoke(one.id)}>${t("people.take_back")}</button>
    </li>`)}</ul>`}
  </section>`;
}
