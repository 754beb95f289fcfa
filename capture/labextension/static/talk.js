// The talk with the class, at the side of the page: who and where one is, the raised hand, the messages and the answer.
// Nothing here takes the focus from where the student has put it; what is new is read aloud politely.

import { Refusal } from "./desk.js";
import { guard } from "./guard.js";
import { nameHelp } from "./item.js";
import { Offer } from "./offer.js";
import { openOwnPage } from "./own_page.js";
import { showRecording } from "./recording.js";
import { choose, fill, language, make, texts } from "./words.js";

const TEXT_MAX = 500;
const ID = "nbpulse-talk";

const nameSender = (message) => (message.is_mine ? texts.me : message.from || texts.from_class);
const isNew = (message) => !message.is_mine && (message.state === "sent" || message.is_due);

/** What has become of a message, in words; "" where there is nothing to say. */
function nameFate(message) {
  if (message.is_waiting) return texts.message_waiting;
  if (message.problem) return fill(texts.message_refused, { problem: message.problem });
  const fates = { accepted: texts.offer_accepted, never: texts.offer_declined, later: texts.offer_put_off };
  return (message.offer && !message.is_due && fates[message.state]) || "";
}

/** One message's place in the log; changed in place, so that the focus inside it stays. */
class Entry {
  constructor(message, tracker, messages) {
    const at = new Date(message.at).toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit" });
    this._fate = make("p", { className: "nbpulse-fate" });
    this._offer = message.offer ? new Offer(message, tracker, messages) : null;
    this.node = make("div", { className: `nbpulse-message${message.is_mine ? " nbpulse-mine" : ""}`, tabIndex: -1 },
      make("p", { className: "nbpulse-sender" }, make("b", { textContent: nameSender(message) }), ` ${at}`),
      make("p", { className: "nbpulse-text", textContent: choose(message.text) }),
      ...(this._offer ? [this._offer.node] : []), this._fate);
    this.show(message);
  }

  show(message) {
    const fate = nameFate(message);
    if (this._fate.textContent !== fate) this._fate.textContent = fate;
    if (this._offer === null) return;
    const hadFocus = this._offer.node.contains(document.activeElement);
    this._offer.show(message);
    if (hadFocus && !document.activeElement.getClientRects().length) this.node.focus(); // its button has gone
  }
}

export class Talk {
  constructor({ app, desk, apputils, status, messages, forms, tracker, widgets, icon }) {
    Object.assign(this, { _app: app, _forms: forms, _tracker: tracker, _messages: messages });
    this._recording = { apputils, desk, status, widgets };
    this._entries = new Map();
    this._shown = new Set();
    [this._toast, this._announced, this._coming] = [null, null, null];
    this._draw();
    this._widget = new widgets.Widget({ node: this._node });
    this._widget.id = ID;
    this._widget.title.caption = texts.talk_title;
    this._widget.title.icon = icon;
    this._widget.onAfterShow = guard(() => {
      this._forms.untellAll();
      this._look();
    });
    this._widget.onActivateRequest = guard(() => this._input.focus());
    app.shell.add(this._widget, "right", { rank: 950 });
    status.listen((state) => this._showState(state));
    messages.listen((all) => this._showMessages(all));
    document.addEventListener("visibilitychange", guard(() => this._look()));
    tracker.currentChanged.connect(guard(() => this._look()));
  }

  open() {
    this._app.shell.activateById(ID);
  }

  showRecording() {
    return showRecording(this._recording);
  }

  openOwnPage() {
    return openOwnPage(this._recording.desk, this._forms);
  }

  _draw() {
    this._who = make("p");
    this._hand = make("p", { className: "nbpulse-hand-state", role: "status" });
    this._log = make("div", { className: "nbpulse-log", role: "log", "aria-live": "polite", tabIndex: 0,
      "aria-label": texts.messages });
    this._empty = make("p", { className: "nbpulse-empty", textContent: texts.no_messages });
    this._input = make("textarea", { className: "jp-mod-styled nbpulse-input", rows: 2, maxLength: TEXT_MAX });
    this._problem = make("p", { role: "alert", className: "nbpulse-problem" });
    const send = make("button", { type: "submit", className: "jp-mod-styled jp-mod-accept", textContent: texts.send });
    this._form = make("form", { className: "nbpulse-form" },
      make("label", {}, make("span", { textContent: texts.answer }), this._input), this._problem, send);
    this._form.onsubmit = guard((event) => {
      event.preventDefault();
      return this._send();
    });
    this._input.onkeydown = guard((event) => {
      // The Enter that ends the conversion of Japanese is not meant for us.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return undefined;
      event.preventDefault();
      return this._send();
    });
    const own = make("button", { type: "button", className: "jp-mod-styled jp-mod-reject nbpulse-recording",
      textContent: texts.recording, onclick: guard(() => this.showRecording()) });
    this._ownPage = make("button", { type: "button", className: "jp-mod-styled jp-mod-reject nbpulse-own-page",
      textContent: texts.own_page, onclick: guard(() => this.openOwnPage()) });
    this._recorded = make("div", {}, make("p", { textContent: texts.notice }), own);
    this._resume = make("p");
    const details = make("details", {}, make("summary", { textContent: texts.what_is_seen }), this._recorded, this._resume);
    this._node = make("section", { className: "nbpulse-talk", "aria-label": texts.talk_title },
      make("h2", { textContent: texts.talk_title }), this._who, this._ownPage, this._hand, this._log, this._form, details);
  }

  _showState(state) {
    const waiting = state.waiting > 0 ? ` ${fill(texts.details_waiting, { n: state.waiting })}` : "";
    const who = state.course && state.name ? fill(texts.details, state) : texts.connected;
    this._who.textContent = state.joined ? who + waiting : texts.not_joined;
    const help = nameHelp(state.help);
    if (this._hand.textContent !== help) this._hand.textContent = help;
    for (const part of [this._ownPage, this._log, this._form]) part.hidden = !state.joined;
    this._resume.textContent = state.resume_code ? fill(texts.resume, { code: state.resume_code }) : "";
    const coming = (state.help && state.help.open && state.help.coming) || null;
    if (coming !== null && coming.at !== this._coming) this._forms.tell(help, "info");
    this._coming = coming && coming.at;
  }

  _showMessages(all) {
    const ids = new Set(all.map((message) => message.id));
    for (const [id, entry] of this._entries) {
      if (ids.has(id)) continue;
      entry.node.remove();
      this._entries.delete(id);
    }
    for (const message of all) {
      const entry = this._entries.get(message.id);
      if (entry) entry.show(message);
      else this._add(message);
    }
    if (all.length === 0) this._log.replaceChildren(this._empty);
    else this._empty.remove();
    this._look();
  }

  /** In the order of time, though the class's word may come after an answer that was given later. */
  _add(message) {
    const entry = new Entry(message, this._tracker, this._messages);
    entry.at = message.at;
    const next = [...this._entries.values()].find((one) => one.at > message.at);
    this._log.insertBefore(entry.node, next ? next.node : null);
    this._entries.set(message.id, entry);
    this._log.scrollTop = this._log.scrollHeight;
  }

  /** What the student can see now has been shown; of the newest of the rest a word is said in the corner of the page. */
  _look() {
    const isSeen = this._widget.isVisible && !document.hidden;
    const news = this._messages.now.filter(isNew);
    if (isSeen) {
      for (const message of this._messages.now) this._entries.get(message.id)?.show(message);
      for (const message of news) this._noteShown(message);
    }
    this._announce((!isSeen && news[news.length - 1]) || null);
  }

  _noteShown(message) {
    if (message.state !== "sent" || this._shown.has(message.id)) return;
    this._shown.add(message.id);
    guard(() => this._messages.decide(message.id, "shown"))();
  }

  _announce(message) {
    const id = message && message.id;
    if (id === this._announced) return;
    if (this._toast !== null) this._forms.untell(this._toast);
    this._announced = id;
    this._toast = null;
    if (message === null) return;
    const facts = { from: nameSender(message), text: choose(message.text) };
    const words = fill(message.offer ? texts.offer_announced : texts.message_announced, facts);
    this._toast = this._forms.tell(words, "info", [{ label: texts.show, callback: guard(() => this.open()) }]);
  }

  /** To the thread in which the class has spoken last. */
  async _send() {
    const text = this._input.value.trim();
    if (!text) return;
    const theirs = this._messages.now.filter((message) => !message.is_mine && message.thread_id);
    try {
      await this._messages.answer(text, theirs.length ? theirs[theirs.length - 1].thread_id : null);
      this._input.value = "";
      this._problem.textContent = "";
    } catch (error) {
      this._problem.textContent = (error instanceof Refusal && error.text) || texts.unreachable;
    }
  }
}
