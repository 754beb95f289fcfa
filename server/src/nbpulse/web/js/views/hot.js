// @ts-check
/**
 * Cells that fail for too many of those who tried: the worst in one line, which is there also when none is, so that
 * nothing jumps. One that is muted is so for all of the staff.
 */
import { html } from "../preact.js";
import { mute } from "../groups.js";
import { draft, formatNumber, t } from "../i18n.js";
import { cellNumbers, cells, classroom, course, hotCells, mutedGroups, rows, talk } from "../store.js";
import { Glyph } from "./glyph.js";

/** @typedef {import("../state.js").HotCell} HotCell */

const STANDS_IN_ERROR = ["3", "4"];

export function Hot() {
  const silent = mutedGroups.value.filter((one) => one.cell && !one.label);
  const list = hotCells.value.toSorted((a, b) => share(b) - share(a));
  return html`<section class="hot" aria-label=${t("hot.title")} data-hot=${list.length}>
    ${list.length === 0 ? html`<span class="muted"><${Glyph} kind="ok" /> ${t("hot.none")}</span>` : html`<${Worst} key=${list[0].cell} hot=${list[0]} more=${list.length - 1} />`}
    ${silent.map((one) => html`<${Silent} key=${one.fp} muted=${one} />`)}
  </section>`;
}

/** A muted cell, with the way back. @param {{muted: import("../state.js").MutedGroup}} props */
function Silent({ muted }) {
  const name = t("group.whole_cell", { cell: cellNumbers.value.get(muted.cell ?? "") ?? "?" });
  return html`<button class="chip plain" data-act="unmute" title=${t("group.unmute")} aria-label=${`${t("group.unmute")}: ${name}`} onClick=${() => mute(course.value.id, muted.fp, false, name)}><${Glyph} kind="mute" /> ${name}</button>`;
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
    <button data-act="mute" title=${t("hot.mute_explain")} onClick=${() => mute(course.value.id, hot.fp, true, t("group.whole_cell", { cell }))}>${t("group.mute")}</button>`;
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
