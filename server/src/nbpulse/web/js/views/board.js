// @ts-check
/** The live page of one class: its parts, side by side on a wide screen, under tabs on a narrow one. */
import { ApiError, fetchIntegrity } from "../api.js";
import { effect, html, useEffect, useState } from "../preact.js";
import { claim, help, say } from "../actions.js";
import { t } from "../i18n.js";
import {
  alerts, classroom, course, counts, gaps, hasCharts, hasShortcuts, isHelpOpen, labelOf, layout, link, minute,
  rankedAlerts, rows, selected, setShortcuts, tab, talk, toggleNames,
} from "../store.js";
import { Notes } from "./acts.js";
import { Attention, explain } from "./attention.js";
import { Bar } from "./bar.js";
import { AllCharts, Charts } from "./charts.js";
import { Counters } from "./counters.js";
import { Grid } from "./grid.js";
import { Hot } from "./hot.js";
import { Header, Help } from "./header.js";
import { markPointed, stepLesson } from "./lesson.js";
import { useClass } from "./live.js";
import { openProjector } from "./nav.js";
import { Refused, Waiting, Connecting } from "./pages.js";
import { Shared } from "./shared.js";
import { Staff } from "./staff.js";

const POLITE_EVERY_MS = 10_000;
const GAPS_EVERY_MS = 120_000;
const GAPS_WITHIN_MS = 3 * 3_600_000;

/** @param {{courseId: string}} props */
export function Board({ courseId }) {
  const { connection, refusal } = useClass(courseId);
  useEffect(() => keepGaps(courseId), [courseId]);
  useEffect(listenToKeys, []);
  if (refusal) return html`<${Refused} error=${refusal} />`;
  if (!classroom.value) return html`<${Connecting} />`;
  return html`<div class="board" data-layout=${layout.value} data-tab=${tab.value} data-link=${link.value.phase}>
    <${Header} showNotebook=${(/** @type {string} */ id) => connection?.showNotebook(id)} />
    ${rows.value.length === 0 ? html`<${Waiting} />` : html`<${Counters} /><${Bar} /><${Hot} /><${Room} />`}
    <${Foot} />
    <${Announcer} />
    <${Notes} />
    <${Writing} />
    <${Help} hasShortcuts=${hasShortcuts.value} setShortcuts=${setShortcuts} />
  </div>`;
}

export function Room() {
  if (layout.value === "wide") return html`<main class="room"><div class="side"><${Attention} /><${Shared} /></div>
    <div class="field" data-charts=${hasCharts.value}><${Grid} />${hasCharts.value && html`<${Charts} />`}</div></main>`;
  const view = { attention: Attention, grid: Grid, shared: Shared, charts: AllCharts }[tab.value];
  return html`<main class="room"><${view} /></main>
    <nav class="tabs" aria-label=${t("tabs.title")}>
      ${["attention", "grid", "shared", "charts"].map((name) => html`<button key=${name} data-tab-button=${name} aria-current=${tab.value === name ? "page" : "false"}
        onClick=${() => (tab.value = /** @type {any} */ (name))}>${t(`${name}.title`)}</button>`)}
    </nav>`;
}

/** The dialog for writing; its code is read when it is first wanted. */
function Writing() {
  const [Talk, setTalk] = useState(/** @type {any} */ (null));
  const isWanted = Boolean(talk.value);
  useEffect(() => {
    if (!isWanted || Talk) return;
    import("./talk.js").then((one) => setTalk(() => one.Talk), (error) => {
      console.warn(error);
      talk.value = null;
      say(t("problem.unreachable"));
    });
  }, [isWanted]);
  return Talk && html`<${Talk} />`;
}

function Foot() {
  const { health, staff } = /** @type {import("../state.js").State} */ (classroom.value);
  return html`<footer class="foot">
    <span>${t("course.join_code")} <b data-join-code>${course.value.join_code}</b></span>
    ${course.value.is_demo && html`<span>${t("demo.explain")}</span>`}
    ${staff.length > 0 && html`<span class="here">${t("staff.title")} <${Staff} /></span>`}
    <span class="spread"></span>
    ${health && html`<span data-received=${health.received} data-stored=${health.stored}>${t("health.received_stored", { received: health.received, stored: health.stored })}</span>`}
  </footer>`;
}

/** Tells screen readers: help at once, the figures politely and at most each ten seconds. */
function Announcer() {
  const [urgent, setUrgent] = useState("");
  const [polite, setPolite] = useState("");
  useEffect(() => {
    const known = new Set(Object.keys(alerts.peek()));
    return effect(() => {
      for (const alert of Object.values(alerts.value)) {
        const row = rows.peek()[alert.i];
        if (alert.kind === "help" && row && !known.has(alert.id)) {
          setUrgent(t("announce.help", { name: labelOf(row), reason: explain(alert, row) }));
        }
        known.add(alert.id);
      }
    });
  }, []);
  useEffect(() => {
    const timer = setInterval(() => {
      const { help, stuck, idle, behind, ok } = counts.peek();
      setPolite(t("announce.counts", { help, stuck, idle, behind, ok }));
      document.title = (help ? `${t("status.help")} ${help} · ` : "") + course.peek().title;
    }, POLITE_EVERY_MS);
    document.title = course.peek().title;
    return () => clearInterval(timer);
  }, []);
  return html`<div class="unseen" role="alert">${urgent}</div><div class="unseen" role="status">${polite}</div>`;
}

/** Asks now and then whose data of the last hours has gaps; nothing waits for that. @param {string} courseId */
function keepGaps(courseId) {
  const ask = async () => {
    try {
      /** @type {Record<string, import("../api.js").Sign[]>} */
      const found = {};
      const { integrity } = await fetchIntegrity(courseId, minute.peek() - GAPS_WITHIN_MS);
      for (const sign of integrity) (found[sign.user_id] ??= []).push(sign);
      gaps.value = found;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // what is known stays; the line to the class says what is wrong
    }
  };
  ask();
  const timer = setInterval(ask, GAPS_EVERY_MS);
  return () => clearInterval(timer);
}

function listenToKeys() {
  /** @param {KeyboardEvent} event */
  const press = (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || isHelpOpen.value || talk.value) return;
    if (event.key === "Escape") selected.value = null;
    if (!hasShortcuts.value || target.matches("input, select, textarea")) return;
    const alert = findPointedAlert();
    const action = {
      "?": () => (isHelpOpen.value = true), a: toggleNames, "/": focusSearch, p: () => openProjector(course.peek().id),
      t: markPointed, "]": () => stepLesson(1), "[": () => stepLesson(-1),
      c: alert && (() => claim(alert)), h: alert && (() => help(alert)),
      m: alert && (() => (talk.value = { student: rows.peek()[alert.i].id })),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };
  addEventListener("keydown", press);
  return () => removeEventListener("keydown", press);
}

/** The alert of the entry with the focus, else the first of the student pointed at. */
function findPointedAlert() {
  const id = document.activeElement?.closest("[data-alert]")?.getAttribute("data-alert");
  return alerts.peek()[id ?? ""] ?? rankedAlerts.peek().find((/** @type {any} */ one) => one.i === selected.peek());
}

function focusSearch() {
  tab.value = "grid"; // where tabs are, it stands above this one
  setTimeout(() => /** @type {?HTMLInputElement} */ (document.getElementById("search"))?.select());
}
