// @ts-check
/** A past class on the board: everything of the live page as it was, but what one does there; played, paused, searched. */
import { html, useEffect, useState } from "../preact.js";
import { formatClock, formatDay, t } from "../i18n.js";
import { Player } from "../player.js";
import { classroom, clockOffsetMs, hasShortcuts, isNamed, isPast, layout, link, now, rows, selected, setShortcuts, tab, toggleNames } from "../store.js";
import { Room } from "./board.js";
import { Counters } from "./counters.js";
import { Help, HelpButton, Preferences } from "./header.js";
import { Hot } from "./hot.js";
import { AsOf, CoursePage, listenForHelp, Problem } from "./pages.js";

const SPEEDS = [1, 4, 10, 30, 60];

/** @param {{courseId: string, title: string, item: string}} props `item`: the meeting */
export function Replay({ courseId, title, item }) {
  const [playing, setPlaying] = useState(/** @type {?import("../player.js").Playing} */ (null));
  const [player, setPlayer] = useState(/** @type {?Player} */ (null));
  useEffect(() => {
    const made = new Player(courseId, item, showPast, setPlaying);
    setPlayer(made);
    void made.jump(null);
    return () => {
      made.stop();
      leavePast();
    };
  }, [courseId, item]);
  useEffect(() => listenToKeys(player), [player]);
  useEffect(listenForHelp, []);
  const back = `/courses/${encodeURIComponent(courseId)}/report/${encodeURIComponent(item)}`;
  if (!classroom.value || !player || !playing) {
    return html`<${CoursePage} name="replay" title=${t("replay.title")} courseId=${courseId} course=${title}>
      ${playing?.problem ? html`<${Problem} error=${playing.problem} /><p><a href=${`/courses/${encodeURIComponent(courseId)}/report`}>${t("report.all")}</a></p>` : html`<p class="muted" role="status">${t("connecting.patience")}</p>`}
    <//>`;
  }
  return html`<div class="board replay" data-page="replay" data-layout=${layout.value} data-tab=${tab.value} data-link=${link.value.phase}>
    <header class="top"><h1><bdi>${title}</bdi></h1><span class="demo">${t("replay.title")}</span>
      <span class="muted">${formatDay(new Date(playing.start))}</span><a href=${back}>${t("replay.to_report")}</a><span class="spread"></span>
      <button class="toggle" data-action="names" aria-pressed=${isNamed.value} title=${t("names.key")} onClick=${toggleNames}>${isNamed.value ? t("names.hide") : t("names.show")}</button>
      <${Preferences} /><${HelpButton} /></header>
    <${Controls} player=${player} playing=${playing} />
    <${AsOf} />
    ${playing.problem && html`<${Problem} error=${playing.problem} />`}
    ${rows.value.length > 0 && html`<${Counters} /><${Hot} /><${Room} />`}
    <footer class="foot"><span title=${t("replay.unknown")}>${t("replay.unknown")}</span></footer>
    <${Help} hasShortcuts=${hasShortcuts.value} setShortcuts=${setShortcuts} />
  </div>`;
}

/** @param {{player: Player, playing: import("../player.js").Playing}} props */
function Controls({ player, playing }) {
  const { at, start, end, speed, isPlaying, isWaiting } = playing;
  const { notebook, notebooks } = /** @type {import("../state.js").State} */ (classroom.value);
  const time = formatClock(at);
  return html`<section class="player" aria-label=${t("replay.controls")} data-playing=${isPlaying} data-at=${at}>
    <button class="primary" data-action="play" aria-keyshortcuts="Space" onClick=${() => player.toggle()}>${t(isPlaying ? "replay.pause" : "replay.play")}</button>
    <label class="scrub"><span class="unseen">${t("replay.time")}</span>
      <input type="range" min=${start} max=${end} step="1000" value=${at} aria-valuetext=${time} onChange=${(/** @type {any} */ e) => player.jump(Number(e.target.value))} /></label>
    <output data-time>${time} / ${formatClock(end)}</output>
    <select aria-label=${t("replay.speed")} onChange=${(/** @type {any} */ e) => player.setSpeed(Number(e.target.value))}>
      ${SPEEDS.map((one) => html`<option key=${one} value=${one} selected=${one === speed}>${t("replay.times", { n: one })}</option>`)}
    </select>
    ${notebooks.length > 1 && html`<select class="notebook" aria-label=${t("notebook.choose")} onChange=${(/** @type {any} */ e) => player.showNotebook(e.target.value)}>
      ${notebooks.map((one) => html`<option key=${one.id} value=${one.id} selected=${one.id === notebook?.id}>${one.title || one.path}</option>`)}
    </select>`}
    <span class="muted" role="status">${isWaiting ? t("replay.loading") : ""}</span>
  </section>`;
}

/** The board's clock stands at the class's time. @param {import("../state.js").State} state @param {import("../player.js").Playing} playing */
function showPast(state, { at }) {
  isPast.value = true;
  clockOffsetMs.value = at - Date.now();
  now.value = at;
  link.value = { phase: "live", lagMs: null, asOf: at, problem: null };
  classroom.value = state;
}

/** Nothing of the past stays for the next page. */
function leavePast() {
  classroom.value = null;
  isPast.value = false;
  clockOffsetMs.value = 0;
  selected.value = null;
  now.value = Date.now();
}

/** @param {?Player} player */
function listenToKeys(player) {
  const press = (/** @type {KeyboardEvent} */ event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || !hasShortcuts.value || target.matches("input:not([type=range]), select, textarea")) return;
    if (event.key === "a") toggleNames();
    else if (event.key === " " && player && !target.matches("button, summary, a")) player.toggle();
    else return;
    event.preventDefault();
  };
  addEventListener("keydown", press);
  return () => removeEventListener("keydown", press);
}
