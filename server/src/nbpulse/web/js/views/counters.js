// @ts-check
/** Two seconds: is the class all right, must I act? */
import { html } from "../preact.js";
import { formatNumber, formatWait, t } from "../i18n.js";
import { cellNumberAt, oldestSince } from "../state.js";
import { cells, classroom, counts, now, team, teamAlerts, teamRows } from "../store.js";
import { findMedian } from "../narrowing.js";
import { Glyph } from "./glyph.js";

const ALARMS = ["help", "stuck", "idle", "behind"];

export function Counters() {
  return html`<section class="counters" aria-label=${t("counters.title")}>
    ${ALARMS.map((kind) => html`<${Alarm} key=${kind} kind=${kind} />`)}
    <${OnTrack} />
  </section>`;
}

/** @param {{kind: import("../state.js").Status}} props */
function Alarm({ kind }) {
  const count = counts.value[kind];
  const since = oldestSince(teamAlerts.value, kind);
  const oldest = since === null ? "" : t("counters.oldest", { time: formatWait(now.value - since) });
  const change = describeChange(kind, count);
  return html`<div class="counter" data-counter=${kind} data-zero=${count === 0}>
    <p class="figure"><${Glyph} kind=${kind} /><b>${formatNumber(count)}</b> <span>${t(`status.${kind}`)}</span></p>
    <p class="aside">${oldest || (!change && "\u00a0")}${change && html`<span class="change">${oldest && " · "}${change}</span>`}</p>
  </div>`;
}

/** How many more or fewer than some minutes ago; of a team that is not known. @param {import("../state.js").Status} kind @param {number} count */
function describeChange(kind, count) {
  const { ago, at } = /** @type {import("../state.js").State} */ (classroom.value);
  const change = ago ? count - ago.counts[kind] : 0;
  if (!ago || team.value || change === 0) return "";
  const words = { n: Math.abs(change), minutes: Math.max(1, Math.round((at - ago.at) / 60_000)) };
  return t(change > 0 ? "counters.more" : "counters.fewer", words);
}

function OnTrack() {
  const whole = /** @type {import("../state.js").State} */ (classroom.value);
  const { median, connected } = team.value ? findMedian(teamRows.value) : whole;
  const [middle, total] = [median ?? 0, cells.value.length].map((column) => cellNumberAt(cells.value, column));
  return html`<div class="counter" data-counter="ok">
    <p class="figure">
      <${Glyph} kind="ok" /><b>${formatNumber(counts.value.ok)}</b> <span>${t("status.ok")}</span>
      ${median !== null && html`<span class="median" data-median=${median}>${t("counters.median", { median: middle, total })}</span>`}
    </p>
    <p class="aside">
      <span data-connected=${connected}>${t("counters.connected", { n: connected })}</span>${" · "}
      <span data-counter="offline">${t("counters.offline", { n: counts.value.offline })}</span>
    </p>
  </div>`;
}
