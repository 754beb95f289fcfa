// @ts-check
/** What staff settle about an error group: sent, said at the bottom with the way back, and seen by all of them. */
import { say } from "./actions.js";
import { ApiError, settleGroup } from "./api.js";
import { t } from "./i18n.js";

/** @typedef {{title?: ?string, merged_into?: ?string, is_muted?: boolean}} Settled */

/**
 * @param {string} courseId @param {string} fingerprint @param {Settled} changes @param {Settled} before what undoing settles
 * @param {string} words what was done @param {() => void} [after] called once it holds, and once it is undone
 */
export async function settle(courseId, fingerprint, changes, before, words, after = () => {}) {
  const send = async (/** @type {Settled} */ wanted, /** @type {string} */ said, /** @type {(() => void)|undefined} */ undo) => {
    try {
      await settleGroup(courseId, fingerprint, wanted);
      say(said, undo);
      after();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      say([error.title || t("problem.unreachable"), error.hint].filter(Boolean).join(" "));
    }
  };
  await send(changes, words, () => void send(before, t("group.undone"), undefined));
}

/** Mutes a group, or no longer. @param {string} courseId @param {string} fingerprint @param {boolean} isMuted @param {string} name @param {() => void} [after] */
export const mute = (courseId, fingerprint, isMuted, name, after) =>
  settle(courseId, fingerprint, { is_muted: isMuted }, { is_muted: !isMuted }, t(isMuted ? "group.muted_done" : "group.unmuted_done", { name }), after);
