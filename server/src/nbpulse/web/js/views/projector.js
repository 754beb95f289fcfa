// @ts-check
/** The class for its own students, read from the last row: what the server sends here names nobody. */
import { Connection } from "../connection.js";
import { fetchProjector } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { formatClock, formatNumber, language, t } from "../i18n.js";
import { hasShortcuts } from "../store.js";
import { Glyph } from "./glyph.js";
import { Refused } from "./pages.js";

/**
 * `present` null: fewer than five are here, and nothing else is said of them.
 * @typedef {Object} Projection
 * @property {string} epoch @property {number} seq @property {number} at
 * @property {{title: string, join_code: ?string, is_demo: boolean}} course
 * @property {?number} present @property {Record<string, number>} shares percent by status
 * @property {?{ratio: number, low: ?number, high: ?number, cell: number, cells: number}} progress
 * @property {{name: string, cell: ?number, n: number}[]} errors
 * @property {{at: number, text: string|Record<string, string>}[]} announcements
 */

/** Each frame is whole, so one that was missed is no gap. @type {import("../connection.js").Feed} */
const PROJECTOR = {
  view: "projector",
  read: fetchProjector,
  applySnapshot: (snapshot) => snapshot,
  applyFrame: (_, frame) => frame,
  placeFrame: (state, frame) => (frame.seq > state.seq ? "next" : "old"),
};

/** In the order in which they are read; what is new on the server comes after them. */
const ORDER = ["ok", "help", "stuck"];
/** What most beginners' errors mean, in words. */
const EXPLAINED = new Set(["NameError", "SyntaxError", "IndentationError", "TypeError", "ValueError", "IndexError", "KeyError", "AttributeError", "ModuleNotFoundError", "ZeroDivisionError", "FileNotFoundError", "AssertionError", "KeyboardInterrupt", "RecursionError", "UnboundLocalError"]);

/** @param {{courseId: string}} props */
export function Projector({ courseId }) {
  const [shown, setShown] = useState(/** @type {?Projection} */ (null));
  const [link, setLink] = useState(/** @type {?import("../connection.js").Link} */ (null));
  const [refusal, setRefusal] = useState(/** @type {?import("../api.js").ApiError} */ (null));
  useEffect(() => {
    const line = new Connection(courseId, { onState: /** @type {any} */ (setShown), onLink: setLink, onRefused: setRefusal }, PROJECTOR);
    line.start();
    return () => line.stop();
  }, [courseId]);
  useEffect(keepAwake, []);
  useEffect(() => {
    const press = (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "f" && hasShortcuts.value && !event.ctrlKey && !event.metaKey && !event.altKey) toggleFullScreen();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  if (refusal) return html`<${Refused} error=${refusal} />`;
  if (!shown) return html`<div class="projector" data-page="projector"><main><h1>${t("link.connecting")}</h1></main></div>`;
  const { course, present, shares, progress, errors, announcements } = shown;
  document.title = `${t("nav.projector")} · ${course.title}`;
  const isLate = link !== null && link.phase !== "live" && link.phase !== "connecting";
  return html`<div class="projector" data-page="projector" data-link=${link?.phase ?? "connecting"}>
    <header>
      <h1><bdi>${course.title}</bdi></h1>
      ${course.is_demo && html`<span class="demo">${t("demo.badge")}</span>`}
      ${isLate && html`<span role="status">${t("link.reconnecting", { time: formatClock(link.asOf ?? shown.at) })}</span>`}
      ${document.fullscreenEnabled && html`<button data-action="full-screen" onClick=${toggleFullScreen}>${t("projector.full_screen")} <kbd>f</kbd></button>`}
    </header>
    <main>
      ${announcements.map((one) => html`<${Announcement} key=${one.at} text=${one.text} />`)}
      ${present === null ? html`<p class="quiet" data-quiet>${t("projector.too_few")}</p>` : html`
        ${progress && html`<${Progress} progress=${progress} />`}
        <${Shares} shares=${shares} present=${present} />
        ${errors.length > 0 && html`<${Errors} errors=${errors} />`}`}
    </main>
    <footer>${course.join_code && html`<span>${t("course.join_code")} <b data-join-code>${course.join_code}</b></span>
      <img class="qr" key=${course.join_code} src=${`/api/v1/courses/${encodeURIComponent(courseId)}/join-code.svg?${course.join_code}`} alt=${t("join.qr")} width="180" height="180" />`}</footer>
  </div>`;
}

/** @param {{text: string|Record<string, string>}} props */
function Announcement({ text }) {
  return html`<p class="announcement" data-announcement><${Glyph} kind="letter" /> <bdi>${typeof text === "string" ? text : (text[language.value] ?? text.en)}</bdi></p>`;
}

/** How far half of the class is; behind it, where the middle half stands. @param {{progress: NonNullable<Projection["progress"]>}} props */
function Progress({ progress }) {
  const { ratio, low, high, cell, cells } = progress;
  const words = t("projector.progress", { cell, cells });
  return html`<section aria-labelledby="progress-title">
    <h2 id="progress-title" data-median-cell=${cell}>${words}</h2>
    <svg class="course-bar" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label=${words}>
      <rect class="track" width="100" height="6" /><rect class="done" width=${100 * ratio} height="6" />
      ${low !== null && high !== null && html`<rect class="middle" x=${100 * low} width=${Math.max(0.6, 100 * (high - low))} y="4.4" height="1.6" />`}
    </svg>
    ${low !== null && html`<p class="key"><i class="middle"></i> ${t("projector.middle_half")}</p>`}
  </section>`;
}

/** @param {{shares: Record<string, number>, present: number}} props */
function Shares({ shares, present }) {
  const statuses = [...ORDER.filter((one) => one in shares), ...Object.keys(shares).filter((one) => !ORDER.includes(one) && one !== "other")];
  if ("other" in shares) statuses.push("other");
  return html`<section aria-labelledby="shares-title">
    <h2 id="shares-title" data-present=${present}>${t("projector.present", { n: present })}</h2>
    <ul class="shares">${statuses.map((status) => html`<li key=${status} data-share=${status} data-percent=${shares[status]}>
      <span class="what">${status !== "other" && html`<${Glyph} kind=${status} />`} ${status === "other" ? t("projector.other") : t(`status.${status}`)}</span>
      <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="track" width="100" height="10" /><rect class="done" width=${shares[status]} height="10" /></svg>
      <b>${formatNumber(shares[status])} %</b></li>`)}</ul>
  </section>`;
}

/** @param {{errors: Projection["errors"]}} props */
function Errors({ errors }) {
  return html`<section aria-labelledby="errors-title">
    <h2 id="errors-title">${t("projector.errors")}</h2>
    <ul class="errors">${errors.map(({ name, cell, n }) => html`<li key=${`${name} ${cell}`} data-error=${name} data-n=${n}>
      <code>${name === "Error" ? t("projector.some_error") : name}</code>
      ${cell !== null && html` <span>${t("projector.cell", { cell })}</span>`} <b>${t("projector.people", { n })}</b>
      ${EXPLAINED.has(name) && html`<p>${t(`python.${name.toLowerCase()}`)}</p>`}
    </li>`)}</ul>
  </section>`;
}

function toggleFullScreen() {
  if (document.fullscreenElement) void document.exitFullscreen();
  else document.documentElement.requestFullscreen().catch((error) => console.warn(error));
}

/** The screen does not go dark while the page is seen; where the browser cannot (or the battery is low), it may. */
function keepAwake() {
  if (!navigator.wakeLock) return undefined;
  let isLeft = false;
  /** @type {?WakeLockSentinel} */
  let lock = null;
  const ask = async () => {
    if (document.hidden) return;
    try {
      lock = await navigator.wakeLock.request("screen"); // a hidden page loses it
      if (isLeft) await lock.release();
    } catch (error) {
      console.warn(error);
    }
  };
  document.addEventListener("visibilitychange", ask);
  void ask();
  return () => {
    isLeft = true;
    document.removeEventListener("visibilitychange", ask);
    void lock?.release();
  };
}
