// @ts-check
/** Of when it is what the page shows, where a copy of the database answered that is a little behind. */
import { computed, signal } from "./preact.js";

/** Younger answers are as good as now: nobody reads faster. */
const WORTH_SAYING_MS = 3_000;
/** By path: of when its answer was, ms since 1970; what is as good as now is not in it. @type {{value: Record<string, number>}} */
const told = signal({});

/** The oldest of what the page shows; null where all of it is of now. */
export const asOf = computed(() => Object.values(told.value).reduce((/** @type {?number} */ oldest, at) => Math.min(oldest ?? at, at), null));

/** @param {string} path of the question @param {Headers} headers of its answer */
export function noteAsOf(path, headers) {
  const [name] = path.split("?");
  const at = Date.parse(headers.get("NBPULSE-As-Of") ?? "");
  // By the server's clock alone: this computer's may be wrong.
  const isOld = Date.parse(headers.get("Date") ?? "") - at >= WORTH_SAYING_MS;
  if (!isOld && !(name in told.value)) return;
  const { [name]: _, ...others } = told.value;
  told.value = isOld ? { ...others, [name]: at } : others;
}

/** Another page is shown. */
export const forgetAsOf = () => void (told.value = {});
