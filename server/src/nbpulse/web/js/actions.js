// @ts-check
/**
 * What staff do about an alert: shown at once, sent (again under the same id where the line fails), and taken back
 * when the server says no. What was done can be undone for ten seconds, from the note at the bottom.
 */
import { actOnAlert, ApiError, makeId } from "./api.js";
import { t } from "./i18n.js";
import { guesses, labelOf, me, notes, now, rows } from "./store.js";

/** @typedef {import("./state.js").Alert} Alert */

const UNDO_MS = 10_000;
const NOTE_MS = 6_000;
const TRIES = 3;
const AGAIN_MS = 700;
// The server's word about it comes with the next frame; by then the guess is no longer needed.
const GUESS_KEPT_MS = 1_500;

/** @param {string} alertId @param {?import("./state.js").Guess} guess */
function suppose(alertId, guess) {
  const { [alertId]: _, ...others } = guesses.peek();
  guesses.value = guess ? { ...others, [alertId]: guess } : others;
}

/** @param {string} text @param {() => void} [undo] */
export function say(text, undo) {
  const note = { id: makeId(), text, undo, until: Date.now() + (undo ? UNDO_MS : NOTE_MS) };
  notes.value = [...notes.peek(), note].slice(-3);
  setTimeout(() => dismiss(note.id), note.until - Date.now());
}

/** @param {string} noteId */
export function dismiss(noteId) {
  notes.value = notes.peek().filter((/** @type {any} */ one) => one.id !== noteId);
}

/** @param {Alert} alert @param {string} action @param {?import("./state.js").Guess} guess @returns {Promise<boolean>} whether it holds */
async function send(alert, action, guess) {
  const row = rows.peek()[alert.i];
  const body = { id: makeId(), user_id: row.id, rule: alert.kind, cell: alert.cell ?? null };
  suppose(alert.id, guess);
  for (let left = TRIES - 1; ; left -= 1) {
    try {
      await actOnAlert(alert.id, action, body);
      setTimeout(() => guesses.peek()[alert.id] === guess && suppose(alert.id, null), GUESS_KEPT_MS);
      return true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (left > 0 && (error.status === 0 || error.status >= 500)) {
        await new Promise((done) => setTimeout(done, AGAIN_MS));
        continue;
      }
      suppose(alert.id, null);
      say(error.claim ? t("act.taken", { name: error.claim.name }) : error.title || t("problem.unreachable"));
      return false;
    }
  }
}

/** "I go", or no longer. @param {Alert} alert */
export function claim(alert) {
  if (!alert.claim) {
    const mine = { by: me.peek().user_id, name: me.peek().display_name, at: now.peek() };
    return send(alert, "claim", { claim: mine });
  }
  if (alert.claim.by === me.peek().user_id) return send(alert, "release", { claim: null });
  say(t("act.taken", { name: alert.claim.name }));
  return Promise.resolve(false);
}

/** @param {Alert} alert @param {"helped"|"snooze"} action */
async function settle(alert, action) {
  const name = labelOf(rows.peek()[alert.i]);
  if (await send(alert, action, { isGone: true })) {
    say(t(`act.${action}_done`, { name }), () => send(alert, "undo", null));
  }
}

/** @param {Alert} alert */
export const help = (alert) => settle(alert, "helped");
/** @param {Alert} alert */
export const snooze = (alert) => settle(alert, "snooze");
