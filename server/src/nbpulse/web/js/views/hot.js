// @ts-check
/**
 * Cells that fail for too many of those who tried: the worst in one line, which is there also when none is, so that
 * nothing jumps. Muting is the viewer's own, and ends when the cell is no longer hot.
 */
import { html, signal } from "../preact.js";
import { draft, formatNumber, t } from "../i18n.js";
import { cellNumbers, cells, classroom, course, hotCells, rows, talk } from "../store.js";
import { Glyph } from "./glyph.js";

/** @typedef {import("../state.js").HotCell} HotCell */

const STANDS_IN_ERROR = ["3", "4"];
const muted = signal(/** @type {string[]} */ ([]));

export function Hot() {
  const isHot = new Set(hotCells.value.map((one) => one.cell));
  const silent = muted.value.filter((/** @type {string} */ cell) => isHot.has(cell));
  const list = hotCells.value.filter((one) => !silent.includes(one.cell)).sort((a, b) => share(b) - share(a));
  return html`<section class="hot" aria-label=${t("hot.title")} data-hot=${list.length}>
    ${list.length === 0 ? html`<span class="muted"><${Glyph} kind="ok" /> ${t("hot.none")}</span>` : html`<${Worst} key=${list[0].cell} hot=${list[0]} more=${list.length - 1} />`}
    ${silent.length > 0 && html`<button class="chip plain" data-act="unmute" onClick=${() => (muted.value = [])}>${t("hot.muted", { n: silent.length })}</button>`}
  </section>`;
}

/** @param {{hot: HotCell, more: number}} props */
function Worst({ hot, more }) {
  const cell = cellNumbers.value.get(hot.cell) ?? "?";
  const page = [course.value.id, "cells", classroom.value?.notebook?.id ?? "", hot.cell].map(encodeURIComponent);
  return html`<span class="fails" data-hot-cell=${hot.cell}><${Glyph} kind="hot" />
      <b>${t("hot.fails", { cell, share: Math.round(share(hot) * 100), failed: hot.failed, tried: hot.tried })}</b></span>
    ${more > 0 && html`<span class="muted">${t("hot.more", { n: more })}</span>`}
    <button data-act="announce-cell" onClick=${() => announce(hot, cell)}>${t("hot.announce")}</button>
    <a class="button" href=${`/courses/${page.join("/")}`}>${t("hot.open")}</a>
    <button data-act="mute" onClick=${() => (muted.value = [...muted.value, hot.cell])}>${t("hot.mute")}</button>`;
}

/** @param {HotCell} hot */
const share = (hot) => hot.failed / hot.tried;

/** A word to those who stand in error on the cell now. @param {HotCell} hot @param {number|string} cell */
async function announce(hot, cell) {
  const column = cells.peek().findIndex((one) => one.id === hot.cell);
  const ids = rows.peek().filter((row) => row && STANDS_IN_ERROR.includes(row.s[column])).map((row) => row.id);
  if (ids.length === 0) return; // all have got past it since the last frame
  const words = { n: ids.length, cell: typeof cell === "number" ? formatNumber(cell) : cell };
  const drafts = await Promise.all(["ja", "en"].map((lang) => draft(lang, "draft.cell", words)));
  talk.value = { key: `cell:${hot.cell}`, to: { user_ids: ids }, title: t("talk.to_cell", words), drafts };
}
