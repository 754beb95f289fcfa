// @ts-check
/** Words of the board: one catalogue per language, keys by meaning. A message is text or {one, other}. */
import { batch, signal } from "./preact.js";

export const LANGUAGES = ["ja", "en"];
export const language = signal("ja");
const catalogue = signal(/** @type {Record<string, any>} */ ({}));

/** Made once per language: making one costs more than a hundred uses. @param {string} lang */
const makeFormats = (lang) => ({
  number: new Intl.NumberFormat(lang, { maximumFractionDigits: 1 }),
  plural: new Intl.PluralRules(lang),
  day: new Intl.DateTimeFormat(lang, { dateStyle: "medium" }),
  clock: new Intl.DateTimeFormat(lang, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false }),
});
let formats = makeFormats("ja");

/** ?lang, then the stored choice, then the browser's languages, then Japanese. */
export function preferredLanguage() {
  const asked = new URLSearchParams(location.search).get("lang");
  const candidates = [asked, localStorage.getItem("nbpulse.lang"), ...navigator.languages];
  for (const candidate of candidates) {
    const short = (candidate ?? "").slice(0, 2).toLowerCase();
    if (LANGUAGES.includes(short)) return short;
  }
  return "ja";
}

/** @param {string} lang one of LANGUAGES */
export async function loadLanguage(lang) {
  const response = await fetch(`/web/messages/${lang}.json`);
  if (!response.ok) throw new Error(`messages/${lang}.json: HTTP ${response.status}`);
  const messages = await response.json();
  formats = makeFormats(lang);
  batch(() => {
    catalogue.value = messages;
    language.value = lang;
  });
  document.documentElement.lang = lang;
}

/** @param {string} lang */
export async function chooseLanguage(lang) {
  localStorage.setItem("nbpulse.lang", lang);
  await loadLanguage(lang);
}

/**
 * The words of another language than the page's, for their reader: `t` of that language.
 * @param {string} lang one of LANGUAGES
 * @returns {Promise<(key: string, params?: Record<string, string|number>) => string>}
 */
export async function loadWords(lang) {
  const response = await fetch(`/web/messages/${lang}.json`);
  if (!response.ok) throw new Error(`messages/${lang}.json: HTTP ${response.status}`);
  const [messages, by] = [await response.json(), makeFormats(lang)];
  return (key, params = {}) => fill(messages[key], params, by);
}

/** One of them. @param {string} lang @param {string} key @param {Record<string, string|number>} params */
export const draft = async (lang, key, params) => (await loadWords(lang))(key, params);

/**
 * The message of a key; `{name}` is replaced by params.name, `n` chooses the plural form.
 * @param {string} key @param {Record<string, string|number>} [params]
 */
export function t(key, params = {}) {
  const message = catalogue.value[key];
  if (message === undefined) {
    console.error(`no message ${key}`);
    return key;
  }
  return fill(message, params, formats);
}

/** @param {any} message @param {Record<string, string|number>} params @param {ReturnType<typeof makeFormats>} by */
function fill(message, params, by) {
  const form = typeof message === "object" ? (message[by.plural.select(Number(params.n))] ?? message.other) : message;
  return form.replace(/\{(\w+)\}/g, (/** @type {string} */ whole, /** @type {string} */ name) => {
    const value = params[name];
    return value === undefined ? whole : typeof value === "number" ? by.number.format(value) : value;
  });
}

/** @param {string|number} value */
export function formatNumber(value) {
  return typeof value === "number" ? formats.number.format(value) : value;
}

/** A waiting time in the shortest honest words. @param {number} ms */
export function formatWait(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return t("time.seconds", { n: seconds });
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return t("time.minutes", { n: minutes });
  return t("time.hours", { n: Math.floor(minutes / 60), minutes: minutes % 60 });
}

/** How long something took: minutes with a tenth, for what is compared. @param {number} ms */
export function formatMinutes(ms) {
  const minutes = Math.round(ms / 6_000) / 10;
  return minutes >= 1 && minutes < 60 ? t("time.minutes", { n: minutes }) : formatWait(ms);
}

/** How long something took, in whole seconds. @param {number} seconds */
export function formatSpan(seconds) {
  return seconds < 1 ? t("time.under_second") : formatWait(seconds * 1000);
}

/** @param {Date} day */
export const formatDay = (day) => formats.day.format(day);

/** @param {number} at ms epoch */
export function formatClock(at) {
  return formats.clock.format(at);
}
