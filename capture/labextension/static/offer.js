// A change to a cell that the class offers: shown against the student's own cell, and made only when the student says so.

import { diffLines } from "./diff.js";
import { Refusal } from "./desk.js";
import { guard } from "./guard.js";
import { fill, make, texts } from "./words.js";

const readMark = (model) => model.sharedModel.getMetadata("nbpulse") || {};

/**
 * The student's cell for an offer: known by its id, or by the original's id that a prepared cell bears; best in the notebook
 * that was meant.
 */
export function findCell(tracker, { cell_id: id, notebook_id: notebookId, notebook_path: path }) {
  const found = [];
  tracker.forEach((panel) => {
    const cells = panel.content.widgets;
    const cell = cells.find((one) => one.model.id === id) || cells.find((one) => readMark(one.model).cell_id === id);
    if (cell) found.push({ panel, cell });
  });
  const isMeant = ({ panel }) => panel.context.path.split(":").pop() === path ||
    (panel.context.model && notebookId && readMark(panel.context.model).notebook_id === notebookId);
  return found.find(isMeant) || found[0] || null;
}

/** One step of the notebook's undo, whatever was typed just before and after. */
function replaceSource(cell, source) {
  const model = cell.model.sharedModel;
  const undo = model.undoManager;
  if (undo && undo.stopCapturing) undo.stopCapturing();
  model.setSource(source);
  if (undo && undo.stopCapturing) undo.stopCapturing();
}

const KINDS = { " ": ["span", "kept"], "-": ["del", "removed"], "+": ["ins", "added"] };

/** The changed lines, marked by sign and element, with the unchanged ones around them. */
function drawDiff(before, after) {
  const lines = diffLines(before, after).map(({ sign, line }) => {
    const [tag, name] = KINDS[sign];
    return make(tag, { className: `nbpulse-line nbpulse-${name}` },
      make("span", { className: "nbpulse-sign-column", textContent: sign }), make("code", { textContent: line }));
  });
  return make("div", { className: "nbpulse-diff", role: "group", tabIndex: 0, "aria-label": texts.offer_changes }, ...lines);
}

/** The offer of one message; `messages` hears the decision. */
export class Offer {
  constructor(message, tracker, messages) {
    this._message = message;
    this._tracker = tracker;
    this._messages = messages;
    this._seen = null;
    this._place = make("p", { className: "nbpulse-offer-place" });
    this._diff = make("div");
    this._problem = make("p", { role: "alert", className: "nbpulse-problem" });
    const makeChoice = (label, className, action) => make("button", { type: "button", textContent: label,
      className: `jp-mod-styled ${className}`, onclick: guard(action) });
    this._buttons = make("div", { className: "nbpulse-choices" },
      makeChoice(texts.offer_accept, "jp-mod-accept nbpulse-accept", () => this._accept()),
      makeChoice(texts.offer_later, "jp-mod-reject nbpulse-later", () => this._decide("later")),
      makeChoice(texts.offer_never, "jp-mod-reject nbpulse-never", () => this._decide("never")));
    this.node = make("div", { className: "nbpulse-offer" }, this._place, this._diff, this._problem, this._buttons);
    this.show(message);
  }

  /** The message's state may have changed, or the student's cell. */
  show(message = this._message) {
    this._message = message;
    const isOver = message.state === "accepted" || message.state === "never";
    for (const part of [this._place, this._diff, this._buttons]) part.hidden = isOver;
    if (isOver) return;
    const { offer } = message;
    const found = findCell(this._tracker, offer);
    const source = found === null ? null : found.cell.model.sharedModel.getSource();
    if (source === this._seen && this._diff.hasChildNodes()) return;
    this._seen = source;
    const facts = { path: offer.notebook_path, n: found ? found.panel.content.widgets.indexOf(found.cell) + 1 : "" };
    this._place.textContent = fill(found === null ? texts.offer_no_cell : texts.offer_place, facts);
    this._diff.replaceChildren(drawDiff(source ?? offer.source, offer.source));
  }

  async _accept() {
    const { offer } = this._message;
    const found = findCell(this._tracker, offer);
    if (found === null || found.cell.model.sharedModel.getSource() !== this._seen) {
      this.show();
      this._problem.textContent =
        found === null ? fill(texts.offer_no_cell, { path: offer.notebook_path }) : texts.offer_changed;
      return;
    }
    if (!(await this._decide("accepted"))) return;
    replaceSource(found.cell, offer.source);
    found.panel.content.activeCellIndex = found.panel.content.widgets.indexOf(found.cell);
  }

  /** Whether it could be noted; an offer that was withdrawn or decided elsewhere is not applied. */
  async _decide(state) {
    try {
      await this._messages.decide(this._message.id, state);
      this._problem.textContent = "";
      return true;
    } catch (error) {
      this._problem.textContent = (error instanceof Refusal && error.text) || texts.unreachable;
      return false;
    }
  }
}
