// @ts-check
/** Of when it is what the page shows, and whom it leaves out: a copy of the database may be behind, one of several away. */
import { computed, signal } from "./preact.js";

/** Younger answers are as good as now: nobody reads faster. */
const WORTH_SAYING_MS = 3_000;
/** By path: of when its answer was, ms since 1970 (Infinity: as good as now), and of which databases. @type {{value: Record<string, [number, string]>}} */
const told = signal({});

/** The oldest of what the page shows; Infinity where all of it is of now. */
export const asOf = computed(() => Math.min(...Object.values(told.value).map(([at]) => at)));
/** What is said of databases that were away. */
export const gap = computed(() => Object.values(told.value).find(([, databases]) => databases.includes("missing"))?.[1]);

/** @param {string} path of the question @param {Headers} headers of its answer */
export function noteAsOf(path, headers) {
  const at = Date.parse(headers.get("NBPULSE-As-Of") ?? "");
  // By the server's clock alone: this computer's may be wrong.
  const isOld = Date.parse(headers.get("Date") ?? "") - at >= WORTH_SAYING_MS;
  told.value = { ...told.value, [path.split("?")[0]]: [isOld ? at : Infinity, headers.get("NBPULSE-Databases") ?? ""] };
}

/** Another page is shown. */
export const forgetAsOf = () => void (told.value = {});
