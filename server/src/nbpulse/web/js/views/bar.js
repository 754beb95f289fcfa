// @ts-check
/** What the page is narrowed to, and how the grid lies: team, time, order, size, section. */
import { html, useEffect } from "../preact.js";
import { ApiError, fetchCharts } from "../api.js";
import { language, t } from "../i18n.js";
import { findPlaces, listSections, listTeams } from "../narrowing.js";
import { pickCharts } from "../state.js";
import {
  cells, classroom, course, hasCharts, isNamed, labelOf, layout, minute, minutes, narrowed, order, places, rows, section,
  setOrder, setZoom, tab, team, toggleCharts, zoom,
} from "../store.js";
import { Search } from "./header.js";

const LOOK_EVERY_MS = 2_000;
const TIMES = [0, 5, 15, 60];

export function Bar() {
  useEffect(keepNarrowed, [team.value, minutes.value, classroom.value?.notebook?.id]);
  useEffect(renewPlaces, [order.value, isNamed.value, language.value, minute.value]);
  const teams = listTeams(rows.value, {}).sort((a, b) => a.team.localeCompare(b.team, language.value, { numeric: true }));
  const isWide = layout.value === "wide";
  const hasGrid = isWide || tab.value === "grid";
  const hasTime = isWide || !["attention", "grid"].includes(tab.value);
  const sections = hasGrid ? listSections(cells.value, []) : [];
  const isNarrow = Boolean(team.value || minutes.value);
  if (!hasTime && !hasGrid && !isNarrow && teams.length === 0) return null;
  return html`<div class="bar" role="toolbar" aria-label=${t("bar.title")} data-narrow=${isNarrow}>
    ${teams.length > 0 && html`<label>${t("bar.team")} <select data-bar="team" value=${team.value} onChange=${(/** @type {any} */ e) => (team.value = e.target.value)}>
      <option value="">${t("bar.all_teams")}</option>
      ${teams.map((one) => html`<option key=${one.team} value=${one.team} selected=${one.team === team.value}>${one.team} (${one.size})</option>`)}
    </select></label>`}
    ${hasTime && html`<label title=${t("bar.time_explain")}>${t("bar.time")} <select data-bar="time" value=${minutes.value} onChange=${(/** @type {any} */ e) => (minutes.value = Number(e.target.value))}>
      ${TIMES.map((one) => html`<option key=${one} value=${one} selected=${one === minutes.value}>${one ? t("bar.minutes", { n: one }) : t("bar.all_time")}</option>`)}
    </select></label>`}
    ${isNarrow && html`<button data-bar="clear" onClick=${() => ((team.value = ""), (minutes.value = 0))}>${t("bar.clear")}</button>`}
    <span class="spread"></span>
    ${hasGrid && !isWide && html`<${Search} />`}
    ${hasGrid && html`
      ${sections.length > 1 && html`<label>${t("bar.section")} <select data-bar="section" value=${section.value} onChange=${(/** @type {any} */ e) => (section.value = e.target.value)}>
        <option value="">${t("bar.no_section")}</option>
        ${sections.map((one) => html`<option key=${one.first} value=${one.title}>${one.title || t("sections.untitled")}</option>`)}
      </select></label>`}
      <label>${t("bar.order")} <select data-bar="order" value=${order.value} onChange=${(/** @type {any} */ e) => setOrder(e.target.value)}>
        ${["number", "seat", "name", "progress"].map((one) => html`<option key=${one} value=${one} selected=${one === order.value}>${t(`order.${one}`)}</option>`)}
      </select></label>
      <span class="segments" role="group" aria-label=${t("bar.zoom")}>
        <button data-bar="smaller" aria-label=${t("bar.smaller")} title=${t("bar.smaller")} disabled=${zoom.value === 0} onClick=${() => setZoom(zoom.value - 1)}>−</button>
        <button data-bar="larger" aria-label=${t("bar.larger")} title=${t("bar.larger")} disabled=${zoom.value === 2} onClick=${() => setZoom(zoom.value + 1)}>+</button>
      </span>
      ${isWide && html`<button data-bar="charts" aria-pressed=${hasCharts.value} onClick=${toggleCharts}>${t("charts.title")}</button>`}`}
  </div>`;
}

/** While the page is narrowed the server is asked for the charts of that; else they come with the frames. */
function keepNarrowed() {
  narrowed.value = null;
  if (!team.value && !minutes.value) return;
  let isOver = false;
  const ask = async () => {
    try {
      const answer = await fetchCharts(course.peek().id, classroom.peek()?.notebook?.id ?? null, team.peek(), minutes.peek());
      if (!isOver) narrowed.value = { errors: answer.errors, charts: pickCharts(answer) };
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // what is shown stays; the line to the class says what is wrong
    }
  };
  ask();
  const timer = setInterval(() => !document.hidden && ask(), LOOK_EVERY_MS);
  return () => {
    isOver = true;
    clearInterval(timer);
  };
}

/** Rows find new places only while nobody's hand is on the grid. */
function renewPlaces() {
  if (places.peek() && document.querySelector(".grid:is(:hover, :focus-within)") && order.peek() === "progress") return;
  places.value = findPlaces(rows.peek(), order.peek(), labelOf, language.peek());
}

