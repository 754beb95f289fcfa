// The student's own say in what is recorded, opened from the toolbar's item: loaded when it is asked for.

/** What is recorded, and the student's own say in it: read, pause, resume, withdraw. */
export async function showRecording(now, { Dialog, Widget, desk, texts, language, fill, make }) {
  const { version, text, due } = now.notice || {};
  const waiting = now.waiting > 0 ? [fill(texts.details_waiting, { n: now.waiting })] : [];
  const words = [(text && text[language]) || texts.notice, ...waiting];
  const open = (title, paragraphs, buttons) => {
    const nodes = paragraphs.map((one) => make("p", { textContent: one, style: "max-width:40em;white-space:pre-line" }));
    return new Dialog({ title, body: new Widget({ node: make("div", {}, ...nodes) }), buttons }).launch();
  };
  const button = (label, action) => Dialog.okButton({ label, className: "nbpulse-" + action, actions: [action] });
  const choices = [now.paused ? button(texts.resume, "resume") : button(texts.pause, "pause")];
  if (due) choices.unshift(button(texts.accept, "consent"));
  choices.unshift(Dialog.warnButton({ label: texts.withdraw_consent, actions: ["withdraw"] }));
  const title = fill(texts.details, { course: now.course, name: now.name });
  const { button: chosen } = await open(title, words, [Dialog.cancelButton({ label: texts.close }), ...choices]);
  const action = chosen.actions[0];
  if (!action) return;
  const close = [Dialog.okButton({ label: texts.close })];
  if (action === "withdraw") {
    const sure = [Dialog.cancelButton({ label: texts.cancel }), Dialog.warnButton({ label: texts.withdraw_consent })];
    const answer = await open(fill(texts.withdraw_ask, { course: now.course }), [], sure);
    if (!answer.button.accept) return;
  }
  try {
    const told = await desk.ask("POST", action, action === "consent" ? { version } : {});
    if (told && told.text) await open(texts.withdraw_consent, [told.text], close);
  } catch (error) {
    await open(title, [error.text || texts.unreachable], close);
  }
}
