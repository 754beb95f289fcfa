// What the front end sees of the student's work and tells our server extension: that the student is there, which cell is
// active, that something is being typed (never what), cells added, removed, moved, markdown cells run, notebooks opened and
// closed.

import { guard } from "./guard.js";

const PRESENCE_EVERY_MS = 20_000;
const TYPING_FOR_MS = 5_000;
const ACTIVE_FOR_MS = 60_000;
const GATHER_MS = 250;

/** Gathers what was observed for a moment and hands it over; what cannot be handed over is dropped: it means "now". */
class Observer {
  constructor(desk) {
    this._desk = desk;
    this._events = [];
    this._timer = null;
    this._typedAt = 0;
    this._touchedAt = Date.now();
    this._active = null;
  }

  note(eventType, panel, cell = {}, data = {}) {
    this._events.push({ event_type: eventType, path: panel.context.path, ...cell, data });
    this._timer ??= setTimeout(guard(() => this.flush()), GATHER_MS);
  }

  /** Something was typed or scrolled somewhere in this notebook; only a change is told at once. */
  noteTouch(panel, isTyping) {
    const before = this._describePresence();
    this._touchedAt = Date.now();
    if (isTyping) this._typedAt = this._touchedAt;
    this._active = panel;
    if (JSON.stringify(before) !== JSON.stringify(this._describePresence())) this.notePresence();
  }

  notePresence(panel = this._active) {
    if (panel === null || panel.isDisposed) return;
    this._active = panel;
    this.note("presence", panel, {}, this._describePresence());
  }

  _describePresence() {
    const state = document.hidden ? "hidden" : Date.now() - this._touchedAt < ACTIVE_FOR_MS ? "active" : "idle";
    return { state, typing: Date.now() - this._typedAt < TYPING_FOR_MS };
  }

  async flush() {
    clearTimeout(this._timer);
    this._timer = null;
    const events = this._events.splice(0);
    if (events.length === 0) return;
    try {
      await this._desk.ask("POST", "observed", events, { keepalive: true });
    } catch {
      // Presence and focus of a moment ago help nobody later; runs are recorded without us.
    }
  }
}

const describeCell = (notebook, cell) => ({
  cell_id: cell.model.id,
  cell_index: notebook.widgets.indexOf(cell),
  cell_type: cell.model.type,
});

/** Tells which cells came, went and changed places since the last time it was asked. */
function makeComparison(panel, observer) {
  const notebook = panel.content;
  let order = notebook.widgets.map((cell) => cell.model.id);
  return () => {
    const now = notebook.widgets.map((cell) => cell.model.id);
    const [before, after] = [new Set(order), new Set(now)];
    for (const cell of notebook.widgets) {
      if (before.has(cell.model.id)) continue;
      observer.note("cell_change", panel, describeCell(notebook, cell), { change: "added" });
    }
    for (const [index, id] of order.entries()) {
      if (after.has(id)) continue;
      observer.note("cell_change", panel, { cell_id: id, cell_index: index }, { change: "removed" });
    }
    const keep = (ids, others) => ids.filter((id) => others.has(id)).join("\n");
    if (keep(order, after) !== keep(now, before)) observer.note("cell_change", panel, {}, { change: "moved" });
    order = now;
  };
}

/** Follows one notebook from its opening to its closing. */
async function follow(panel, observer) {
  const notebook = panel.content;
  let comparing = null;
  panel.disposed.connect(guard(() => {
    clearTimeout(comparing);
    observer.note("notebook_close", panel);
    observer.flush();
  }));
  await panel.revealed;
  await panel.context.ready;
  if (panel.isDisposed) return;
  const compare = makeComparison(panel, observer);
  observer.note("notebook_open", panel);
  observer.notePresence(panel);
  notebook.model.cells.changed.connect(guard(() => {
    clearTimeout(comparing);
    comparing = setTimeout(guard(() => panel.isDisposed || compare()), GATHER_MS);
  }));
  notebook.activeCellChanged.connect(guard((_, cell) => {
    if (cell === null || panel.isDisposed) return;
    observer.note("cell_focus", panel, describeCell(notebook, cell));
  }));
  for (const kind of ["keydown", "pointerdown", "wheel"]) {
    const touch = guard(() => observer.noteTouch(panel, kind === "keydown"));
    notebook.node.addEventListener(kind, touch, { capture: true, passive: true });
  }
}

/** Watches every notebook of the application. */
export function observe(app, desk, tracker, NotebookActions) {
  const observer = new Observer(desk);
  app.docRegistry.addWidgetExtension("Notebook", {
    createNew: guard((panel) => {
      guard(follow)(panel, observer);
    }),
  });
  NotebookActions.executed.connect(guard((_, { notebook, cell }) => {
    const panel = tracker.find((one) => one.content === notebook);
    if (!panel || cell.model.type !== "markdown") return;
    observer.note("markdown_run", panel, describeCell(notebook, cell));
  }));
  tracker.currentChanged.connect(guard((_, panel) => panel && observer.notePresence(panel)));
  document.addEventListener("visibilitychange", guard(() => {
    observer.notePresence();
    observer.flush();
  }));
  // The application closes no notebook when its tab or window is closed; the browser says it.
  window.addEventListener("pagehide", guard((event) => {
    if (event.persisted) return; // it may come back as it is
    tracker.forEach((panel) => observer.note("notebook_close", panel));
    observer.flush();
  }));
  setInterval(guard(() => observer.notePresence()), PRESENCE_EVERY_MS);
}
