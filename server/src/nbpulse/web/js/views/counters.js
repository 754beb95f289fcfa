// @ts-check
/** Two seconds: is the class all right, must I act? */
import { html } from "../preact.js";
import { formatNumber, formatWait, t } from "../i18n.js";
import { cellNumberAt, oldestSince } from "../state.js";
import { alerts, cells, classroom, counts, now } from "../store.js";
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
  const since = oldestSince(alerts.value, kind);
  return html`<div class="counter" data-counter=${kind} data-zero=${count === 0}>
    <p class="figure"><${Glyph} kind=${kind} /><b>${formatNumber(count)}</b> <span>${t(`status.${kind}`)}</span></p>
    <p class="aside">${since === null ? "\u00a0" : t("counters.oldest", { time: formatWait(now.value - since) })}</p>
  </div>`;
}

function OnTrack() {
  const { median, connected } = /** @type {import("../state.js").State} */ (classroom.value);
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
