// @ts-check
/** The settings of one course: when the board speaks (tried on the last class before it is saved), what is collected, what is kept. */
import { ApiError, changeRules, fetchCollection, fetchRules, setCollectionLevel, tryRules } from "../api.js";
import { html, useEffect, useRef, useState } from "../preact.js";
import { formatDay, formatNumber, t } from "../i18n.js";
import { Glyph } from "./glyph.js";
import { CoursePage, Problem, Refused } from "./pages.js";

/** @typedef {Record<string, any>} Rules as the server has them: durations in ms, shares 0..1 */

/** Each rule with its numbers and the unit people give them in. */
const RULES = [
  { kind: "stuck", numbers: { stuck_error_count: "times", stuck_after_ms: "seconds" } },
  { kind: "wrong_answer", numbers: { wrong_answer_count: "times", wrong_answer_after_ms: "seconds" } },
  { kind: "same_error", numbers: { same_error_count: "times", same_error_after_ms: "seconds" } },
  { kind: "long_run", numbers: { long_run_after_ms: "seconds", long_run_ratio: "fold" } },
  { kind: "no_progress", numbers: { no_progress_after_ms: "minutes", no_progress_ratio: "fold" } },
  { kind: "idle", numbers: { idle_after_ms: "minutes" } },
  { kind: "not_started", numbers: { not_started_after_ms: "minutes" } },
  { kind: "behind", numbers: { behind_ratio: "percent", behind_clear_ratio: "percent", behind_median_min: "cells", behind_after_ms: "minutes" } },
  { kind: "cell_hot", numbers: { hot_ratio: "percent", hot_clear_ratio: "percent", hot_tried_min: "students" } },
];
/** @type {Record<string, number>} what one of the unit is on the wire */
const UNIT = { times: 1, seconds: 1000, minutes: 60_000, percent: 0.01, fold: 1, cells: 1, students: 1 };
/** @type {Record<string, number>} */
const STEP = { times: 1, seconds: 1, minutes: 0.5, percent: 1, fold: 0.5, cells: 1, students: 1 };
const LEVELS = ["nothing", "metadata", "source", "output"];

/** @param {number} value on the wire @param {string} unit */
const toUnit = (value, unit) => Math.round((value / UNIT[unit]) * 100) / 100;
/** @param {number} value @param {string} unit */
const fromUnit = (value, unit) => (unit === "percent" ? Math.round(value) / 100 : value * UNIT[unit]);

/** @param {{courseId: string, title: string}} props */
export function Settings({ courseId, title }) {
  const [held, setHeld] = useState(/** @type {any} */ (null));
  const [collection, setCollection] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const run = async (/** @type {() => Promise<any>} */ work) => {
    try {
      setProblem(null);
      await work();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  useEffect(() => {
    void run(async () => {
      const [rules, collected] = await Promise.all([fetchRules(courseId), fetchCollection(courseId)]);
      setHeld(rules);
      setCollection(collected);
    });
  }, [courseId]);
  const page = { name: "settings", title: t("settings.title"), courseId, course: title };
  if (!held || !collection) return problem ? html`<${Refused} error=${problem} />` : html`<${CoursePage} ...${page} />`;
  const level = (/** @type {string} */ to) => run(async () => {
    await setCollectionLevel(courseId, to);
    setCollection(await fetchCollection(courseId));
  });
  return html`<${CoursePage} ...${page}>
    ${problem && html`<${Problem} error=${problem} />`}
    <${RulesForm} key=${JSON.stringify(held.rules)} courseId=${courseId} held=${held} run=${run} saved=${setHeld} />
    <${Collection} collection=${collection} mayChange=${held.may_change} choose=${level} />
    <${Kept} kept=${collection.kept} />
    <section class="card" aria-labelledby="settings-people"><h2 id="settings-people">${t("nav.people")}</h2>
      <p><a href=${`/courses/${encodeURIComponent(courseId)}/people`}>${t("settings.people")}</a></p></section>
  <//>`;
}

/** @param {{courseId: string, held: any, run: (work: () => Promise<any>) => Promise<void>, saved: (held: any) => void}} props */
function RulesForm({ courseId, held, run, saved }) {
  const form = useRef(/** @type {any} */ (null));
  const [rules, setRules] = useState(/** @type {Rules} */ (held.rules));
  const [trial, setTrial] = useState(/** @type {any} */ (null));
  const [isTrying, setTrying] = useState(false);
  const isChanged = JSON.stringify(rules) !== JSON.stringify(held.rules);
  const isDefault = JSON.stringify(rules) === JSON.stringify(held.defaults);
  const change = (/** @type {Rules} */ what) => {
    setTrial(null); // it spoke of other rules
    setRules({ ...rules, ...what });
  };
  const toggle = (/** @type {string} */ kind, /** @type {boolean} */ isOn) =>
    change({ off: isOn ? rules.off.filter((/** @type {string} */ one) => one !== kind) : [...rules.off, kind].sort() });
  const save = (/** @type {any} */ event) => {
    event.preventDefault();
    void run(async () => saved(await changeRules(courseId, rules)));
  };
  const attempt = async () => {
    if (!form.current.reportValidity()) return;
    setTrying(true);
    await run(async () => setTrial(await tryRules(courseId, rules)));
    setTrying(false);
  };
  return html`<section class="card" data-part="rules" aria-labelledby="rules-title">
    <h2 id="rules-title">${t("settings.rules")}</h2>
    <p class="muted">${t(held.may_change ? "settings.rules_explain" : "settings.rules_fixed")}</p>
    <form ref=${form} onSubmit=${save}>
      ${RULES.map(({ kind, numbers }) => html`<fieldset class="rule" key=${kind} data-rule=${kind} disabled=${!held.may_change}>
        <legend><label class="check"><input type="checkbox" name=${`on_${kind}`} checked=${!rules.off.includes(kind)}
          onChange=${(/** @type {any} */ e) => toggle(kind, e.target.checked)} /> <${Glyph} kind=${kind === "cell_hot" ? "hot" : kind} /> ${t(`kind.${kind}`)}</label></legend>
        <p class="muted">${t(`rule_about.${kind}`)}</p>
        <div class="numbers">${Object.entries(numbers).map(([name, unit]) => html`<${Amount} key=${name} name=${name} unit=${unit} value=${rules[name]}
          limit=${held.limits[name]} usual=${held.defaults[name]} isOff=${rules.off.includes(kind)} set=${(/** @type {number} */ value) => change({ [name]: value })} />`)}</div>
        ${trial && html`<${Tried} kind=${kind} trial=${trial} />`}
      </fieldset>`)}
      ${held.may_change && html`<p class="ends">
        <button class="primary" data-action="save-rules" disabled=${!isChanged}>${t("settings.save")}</button>
        <button type="button" data-action="try-rules" disabled=${isTrying} onClick=${attempt}>${t("settings.try")}</button>
        <button type="button" data-action="reset-rules" disabled=${isDefault} onClick=${() => change(held.defaults)}>${t("settings.reset")}</button>
      </p>
      <div class="trial" role="status">${isTrying ? t("settings.trying") : trial ? html`<${TrialOf} trial=${trial} />` : isChanged ? t("settings.unsaved") : ""}</div>`}
    </form>
  </section>`;
}

/** @param {{name: string, unit: string, value: number, limit: {least: number, most: number}, usual: number, isOff: boolean, set: (value: number) => void}} props */
function Amount({ name, unit, value, limit, usual, isOff, set }) {
  const [least, most] = [toUnit(limit.least, unit), toUnit(limit.most, unit)];
  const told = `about-${name}`;
  return html`<label class="amount">${t(`rule_number.${name}`)}
    <span><input type="number" name=${name} required min=${least} max=${most} step=${STEP[unit]} value=${toUnit(value, unit)} disabled=${isOff} aria-describedby=${told}
      onChange=${(/** @type {any} */ e) => e.target.value !== "" && set(fromUnit(Number(e.target.value), unit))} /> ${t(`unit.${unit}`)}</span>
    <small id=${told} class="muted">${t("settings.usual", { usual: toUnit(usual, unit), least, most })}</small>
  </label>`;
}

/** @param {{kind: string, trial: any}} props */
function Tried({ kind, trial }) {
  const { fired, students } = trial.rules.find((/** @type {any} */ one) => one.kind === kind) ?? { fired: 0, students: 0 };
  return html`<p class="tried" data-tried=${kind} data-fired=${fired}>${kind === "cell_hot" ? t("settings.fired_cells", { n: fired }) : t("settings.fired", { fired, n: students })}</p>`;
}

/** @param {{trial: any}} props */
function TrialOf({ trial: { meeting, events, students } }) {
  const day = formatDay(new Date(meeting.started_at));
  return html`<p data-trial>${t("settings.trial_of", { day, events, students })} ${!meeting.is_whole && t("settings.trial_part")}</p>
    <p class="muted">${t("settings.trial_limits")}</p>`;
}

/** @param {{collection: any, mayChange: boolean, choose: (level: string) => void}} props */
function Collection({ collection, mayChange, choose }) {
  const [wanted, setWanted] = useState(collection.level);
  return html`<section class="card" data-part="collection" aria-labelledby="collection-title">
    <h2 id="collection-title">${t("settings.collection")}</h2>
    <p class="muted">${t("settings.collection_explain", { version: collection.version })}</p>
    <fieldset class="rule" disabled=${!mayChange}><legend class="unseen">${t("settings.collection")}</legend>
      ${LEVELS.map((level) => html`<label class="check" key=${level}><input type="radio" name="level" value=${level} checked=${wanted === level}
        onChange=${() => setWanted(level)} /> ${t(`level.${level}`)}</label>`)}
    </fieldset>
    ${collection.without.length > 0 && html`<p class="muted">${t("settings.without")} <code>${collection.without.join(", ")}</code></p>`}
    <p class="muted">${t("settings.shown", collection.students)}</p>
    ${mayChange && html`<p class="ends"><button data-action="save-level" disabled=${wanted === collection.level} onClick=${() => choose(wanted)}>${t("settings.save_level")}</button></p>`}
  </section>`;
}

/** @param {{kept: {raw_days: number, session_days: number}}} props */
function Kept({ kept }) {
  const days = (/** @type {number} */ n) => (n ? t("settings.days", { n: formatNumber(n) }) : t("settings.for_ever"));
  return html`<section class="card" data-part="kept" aria-labelledby="kept-title">
    <h2 id="kept-title">${t("settings.kept")}</h2>
    <dl class="facts">
      <div><dt>${t("settings.kept_raw")}</dt><dd>${days(kept.raw_days)}</dd></div>
      <div><dt>${t("settings.kept_sessions")}</dt><dd>${days(kept.session_days)}</dd></div>
    </dl>
    <p class="muted">${t("settings.kept_explain")}</p>
  </section>`;
}
