// The dialogs: joining a class, raising the hand, taking it down.

import { Refusal } from "./desk.js";
import { fill, make, texts } from "./words.js";

const PASSING_MS = 8_000; // what the toolbar and the talk go on saying

/** `CODE@host:port` of a prepared notebook, as a teacher would hand it out; "" where one of the two is missing. */
function composeInvitation(prepared) {
  if (!prepared.url || !prepared.join_code) return "";
  const address = String(prepared.url).replace(/\/+$/, "");
  return `${prepared.join_code}@${address.replace(/^http:\/\//, "")}`;
}

export class Forms {
  constructor(apputils, widgets, desk) {
    this._apputils = apputils;
    this._Widget = widgets.Widget;
    this._desk = desk;
    this._told = new Set();
  }

  /** One form; the answer of `send`, or null. `send` may throw a Refusal: the form stays open and says it. */
  async ask(title, fields, accept, send, note = "") {
    const { Dialog } = this._apputils;
    const inputs = fields.map((field) => make("input", { type: "text", className: "jp-mod-styled nbpulse-input",
      name: field.name, value: field.value || "", maxLength: field.max || 500, autocomplete: "off",
      required: Boolean(field.required), placeholder: field.example || "" }));
    const first = inputs.find((input) => input.required && !input.value) || inputs[0];
    first.setAttribute("data-first", "");
    const problem = make("p", { role: "alert", className: "nbpulse-problem" });
    const labels = inputs.map((input, n) => make("label", {}, make("span", { textContent: fields[n].label }), input));
    const notice = make("p", { textContent: note });
    for (;;) {
      const body = new this._Widget({ node: make("div", { className: "nbpulse-form" }, ...labels, problem, notice) });
      const dialog = new Dialog({ title, body, focusNodeSelector: "[data-first]",
        buttons: [Dialog.cancelButton({ label: texts.cancel }), Dialog.okButton({ label: accept })] });
      const result = await dialog.launch();
      if (!result.button.accept) return null;
      try {
        return await send(Object.fromEntries(inputs.map((input) => [input.name, input.value.trim()])));
      } catch (error) {
        problem.textContent = (error instanceof Refusal && error.text) || texts.unreachable;
      }
    }
  }

  /** `prepared` is what the notebook's metadata say of its class, `known` the address of the class joined before. */
  async join(prepared, known) {
    const invitation = composeInvitation(prepared);
    const fields = [
      { name: "invitation", label: texts.invitation, value: invitation, required: true, example: texts.invitation_example },
      { name: "name", label: texts.your_name, max: 200, required: true },
      { name: "student_number", label: texts.number, max: 64 },
      { name: "resume_code", label: texts.resume_ask, max: 40 },
    ];
    const url = prepared.url || known || "";
    let version; // of a notice that says more than the one below: the form then shows it and is sent once more
    const send = async (values) => {
      try {
        return await this._desk.ask("POST", "join", { ...values, url, notice_version: version });
      } catch (error) {
        version = error.version || version;
        throw error;
      }
    };
    const title = prepared.course ? fill(texts.join_course, { course: prepared.course }) : texts.join_title;
    const joined = await this.ask(title, fields, texts.join, send, texts.notice);
    if (joined !== null) this.tell(fill(joined.is_waiting ? texts.joined_waits : texts.joined, joined), "success");
  }

  async raiseHand(path) {
    const fields = [{ name: "message", label: texts.help_ask, max: 500 }];
    await this.ask(texts.help_title, fields, texts.send, (values) =>
      this._desk.ask("POST", "help", { path, ...values }));
  }

  async takeDown(path) {
    const { Dialog, showDialog } = this._apputils;
    const result = await showDialog({ title: texts.help_withdraw, buttons: [
      Dialog.cancelButton({ label: texts.cancel }), Dialog.okButton({ label: texts.withdraw })] });
    if (!result.button.accept) return;
    try {
      await this._desk.ask("DELETE", `help?path=${encodeURIComponent(path)}`);
    } catch (error) {
      this.tell((error instanceof Refusal && error.text) || texts.unreachable, "error");
    }
  }

  /** A word in the corner of the page; what asks for something stays until it is put away. Its id. */
  tell(text, type, actions = []) {
    const stays = type === "error" || actions.length > 0;
    const id = this._apputils.Notification.emit(text, type, { autoClose: stays ? false : PASSING_MS, actions });
    this._told.add(id);
    return id;
  }

  untell(id) {
    this._apputils.Notification.dismiss(id);
    this._told.delete(id);
  }

  /** The corner is free again: the talk, which says all of it, lies below. */
  untellAll() {
    for (const id of [...this._told]) this.untell(id);
  }
}
