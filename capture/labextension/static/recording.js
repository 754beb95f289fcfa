// What is recorded, and the student's own say in it: read the notice, pause, resume, withdraw.

import { Refusal } from "./desk.js";
import { choose, fill, language, make, texts } from "./words.js";

/** Each look as a line: when, who, what. */
function nameLooks(looks) {
  if (looks.length === 0) return [texts.looks_none];
  const when = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
  return looks.map(({ at, by, text }) => `${when.format(new Date(at))} ${by || texts.operator}: ${text}`);
}

/** One dialog; another before a withdrawal, which is for good. */
export async function showRecording({ apputils, desk, status, widgets }) {
  const { Dialog } = apputils;
  const now = status.now;
  const { version, text, due } = now.notice || {};
  const open = (title, paragraphs, buttons) => {
    const nodes = paragraphs.map((one) => make("p", { textContent: one, className: "nbpulse-text" }));
    const body = new widgets.Widget({ node: make("div", { className: "nbpulse-form" }, ...nodes) });
    return new Dialog({ title, body, buttons }).launch();
  };
  const offer = (label, action) => Dialog.okButton({ label, className: `nbpulse-${action}`, actions: [action] });
  const choices = [Dialog.warnButton({ label: texts.withdraw_consent, actions: ["withdraw"] })];
  if (due) choices.push(offer(texts.accept, "consent"));
  choices.push(now.paused ? offer(texts.record_again, "resume") : offer(texts.pause, "pause"));
  choices.push(offer(texts.looks, "looks"));
  const waiting = now.waiting > 0 ? [fill(texts.details_waiting, { n: now.waiting })] : [];
  const words = [choose(text) || texts.notice, ...waiting];
  const title = fill(texts.details, now);
  const { button } = await open(title, words, [Dialog.cancelButton({ label: texts.close }), ...choices]);
  const [action] = button.actions;
  if (!action) return;
  const close = [Dialog.okButton({ label: texts.close })];
  if (action === "withdraw") {
    const sure = [Dialog.cancelButton({ label: texts.cancel }), Dialog.warnButton({ label: texts.withdraw_consent })];
    if (!(await open(fill(texts.withdraw_ask, now), [], sure)).button.accept) return;
  }
  try {
    if (action === "looks") {
      const { looks } = await desk.ask("GET", "looks");
      await open(texts.looks, nameLooks(looks), close);
      return;
    }
    const told = await desk.ask("POST", action, action === "consent" ? { version } : {});
    if (told && told.text) await open(texts.withdraw_consent, [told.text], close);
  } catch (error) {
    await open(title, [(error instanceof Refusal && error.text) || texts.unreachable], close);
  }
}
