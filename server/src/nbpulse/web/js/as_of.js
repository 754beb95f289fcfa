// @ts-check
/** Of when it is what the page shows, and of whom: where a copy of the database answered that is a little behind, or not
 * every database with students' records answered. */
import { computed, signal } from "./preact.js";

/** @typedef {{answered: number, of: number, shards: string, share: number}} Gap `share`: of all students, 0..1, about */

/** Younger answers are as good as now: nobody reads faster. */
const WORTH_SAYING_MS = 3_000;
const SHARD_COUNT = 64;
/** By path: of when its answer was, ms since 1970; what is as good as now is not in it. @type {{value: Record<string, number>}} */
const told = signal({});
/** By path: what its answer left out; what is whole is not in it. @type {{value: Record<string, Gap>}} */
const gaps = signal({});

/** The oldest of what the page shows; null where all of it is of now. */
export const asOf = computed(() => Object.values(told.value).reduce((/** @type {?number} */ oldest, at) => Math.min(oldest ?? at, at), null));
/** The widest gap in what the page shows; null where all of it is whole. */
export const gap = computed(() => Object.values(gaps.value).reduce((/** @type {?Gap} */ widest, one) => (widest && widest.share >= one.share ? widest : one), null));

/** @param {string} path of the question @param {Headers} headers of its answer */
export function noteAsOf(path, headers) {
  const [name] = path.split("?");
  const at = Date.parse(headers.get("NBPULSE-As-Of") ?? "");
  // By the server's clock alone: this computer's may be wrong.
  const isOld = Date.parse(headers.get("Date") ?? "") - at >= WORTH_SAYING_MS;
  keep(told, name, isOld ? at : null);
  keep(gaps, name, readGap(headers.get("NBPULSE-Databases") ?? ""));
}

/** @template T @param {{value: Record<string, T>}} all @param {string} name @param {?T} one */
function keep(all, name, one) {
  if (one === null && !(name in all.value)) return;
  const { [name]: _, ...others } = all.value;
  all.value = one === null ? others : { ...others, [name]: one };
}

/** @param {string} header answered=3, of=4, missing="0-15 40" @returns {?Gap} */
function readGap(header) {
  const [, answered, of, shards] = header.match(/^answered=(\d+), of=(\d+), missing="([\d -]+)"$/) ?? [];
  if (!shards) return null;
  const count = shards.split(" ").reduce((sum, range) => {
    const [first, last] = range.split("-").map(Number);
    return sum + (last ?? first) - first + 1;
  }, 0);
  return { answered: Number(answered), of: Number(of), shards: shards.replaceAll("-", "–"), share: count / SHARD_COUNT };
}

/** Another page is shown. */
export function forgetAsOf() {
  told.value = {};
  gaps.value = {};
}
