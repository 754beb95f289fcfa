// The front end of nbpulse-capture, written by hand: no build step, no dependency, two files.
//
// What it tells (to our own server extension only, which knows the class's address and token): that the student is
// there, which cell is active, that something is being typed (never what), cells added, removed, moved, markdown cells
// run, notebooks opened and closed. What it shows: one item in each notebook's toolbar, with the connection's state, the
// way to join, the raised hand and the class's messages.
//
// JupyterLab 4 and Notebook 7 load it as a federated module: a container {init, get} under its name in
// window._JUPYTERLAB (https://jupyterlab.readthedocs.io/en/stable/extension/extension_dev.html, "Prebuilt Extensions").
(() => {
  "use strict";

  const NAME = "nbpulse-capture";
  const HERE = document.currentScript.src;
  const PRESENCE_EVERY_MS = 20_000;
  const TYPING_FOR_MS = 5_000;
  const ACTIVE_FOR_MS = 60_000;
  const GATHER_MS = 250;
  const WAIT_S = 25;
  const RETRY_MS = 5_000;
  // Drawn here, since not every machine has a font with this sign.
  const HAND =
    '<svg width="14" height="14" viewBox="0 0 16 16" fill="currentColor"><path d="M5 9V3.5a1 1 0 0 1 2 0V8h.5V2a1 1 0 0 ' +
    '1 2 0v6h.5V3a1 1 0 0 1 2 0v5.5h.5V5a1 1 0 0 1 2 0v5.5A4.5 4.5 0 0 1 10 15H9a5 5 0 0 1-4-2L2.3 9.6a1 1 0 0 1 1.5-1.3z"/></svg>';

  let scope = null;
  let language = "en";
  let texts = {}; // by name, in the application's language; they stand in capture's one catalogue

  /** A package of the application, from the modules it shares. */
  async function load(name) {
    const versions = scope[name];
    const version = versions && Object.keys(versions)[0];
    if (!version) throw new Error(`${NAME}: ${name} is not shared by this application`);
    return (await versions[version].get())();
  }

  /** Speaks to our server extension; the application adds its own token and XSRF header. */
  class Desk {
    constructor(services, coreutils) {
      this._connection = services.ServerConnection;
      this._settings = services.ServerConnection.makeSettings();
      this._join = coreutils.URLExt.join;
    }

    /** The answer's JSON. Throws the network's error, or {status, text} for a refusal. */
    async ask(method, path, body) {
      const url = this._join(this._settings.baseUrl, NAME, `${path}${path.includes("?") ? "&" : "?"}language=${language}`);
      const request = { method, ...(body === undefined ? {} : { body: JSON.stringify(body) }) };
      const answer = await this._connection.makeRequest(url, request, this._settings);
      const content = answer.status === 204 ? null : await answer.json().catch(() => null);
      if (!answer.ok) throw { status: answer.status, text: (content && content.text) || "", version: content && content.notice_version };
      return content;
    }
  }

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
      this._timer ??= setTimeout(() => this.flush(), GATHER_MS);
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
        await this._desk.ask("POST", "observed", events);
      } catch {
        // Presence and focus of a moment ago help nobody later; runs are recorded without us.
      }
    }
  }

  const describeCell = (cell, index) => ({
    cell_id: cell.model.id,
    cell_index: index,
    cell_type: cell.model.type,
  });

  /** Follows one notebook from its opening to its closing. */
  function follow(panel, observer) {
    const notebook = panel.content;
    const find = (cell) => notebook.widgets.indexOf(cell);
    let order = [];

    const compare = () => {
      const now = notebook.widgets.map((cell) => cell.model.id);
      const before = new Set(order);
      const after = new Set(now);
      for (const cell of notebook.widgets) {
        if (!before.has(cell.model.id)) {
          observer.note("cell_change", panel, describeCell(cell, find(cell)), { change: "added" });
        }
      }
      for (const [index, id] of order.entries()) {
        if (!after.has(id)) {
          const gone = { cell_id: id, cell_index: index };
          observer.note("cell_change", panel, gone, { change: "removed" });
        }
      }
      const kept = (ids, others) => ids.filter((id) => others.has(id)).join("\n");
      if (kept(order, after) !== kept(now, before)) observer.note("cell_change", panel, {}, { change: "moved" });
      order = now;
    };
    let comparing = null;
    const compareSoon = () => {
      clearTimeout(comparing);
      comparing = setTimeout(() => !panel.isDisposed && compare(), GATHER_MS);
    };

    panel.revealed.then(() => panel.context.ready).then(() => {
      order = notebook.widgets.map((cell) => cell.model.id);
      observer.note("notebook_open", panel);
      observer.notePresence(panel);
      notebook.model.cells.changed.connect(compareSoon);
      notebook.activeCellChanged.connect((_, cell) => {
        if (cell === null || panel.isDisposed) return;
        observer.note("cell_focus", panel, describeCell(cell, find(cell)));
      });
      for (const kind of ["keydown", "pointerdown", "wheel"]) {
        const touch = () => observer.noteTouch(panel, kind === "keydown");
        notebook.node.addEventListener(kind, touch, { capture: true, passive: true });
      }
    });
    panel.disposed.connect(() => {
      clearTimeout(comparing);
      observer.note("notebook_close", panel);
      observer.flush();
    });
  }

  /** The state as the server extension tells it, for every toolbar at once. */
  class Status {
    constructor(desk) {
      this._desk = desk;
      this._listeners = new Set();
      this.now = null;
      this._watch();
    }

    listen(listener) {
      this._listeners.add(listener);
      if (this.now !== null) listener(this.now);
      return () => this._listeners.delete(listener);
    }

    tell(state) {
      this.now = state;
      for (const listener of this._listeners) listener(state);
    }

    async _watch() {
      let after = -1;
      for (;;) {
        try {
          const state = await this._desk.ask("GET", `state?after=${after}&wait_s=${WAIT_S}`);
          after = state.revision;
          this.tell(state);
        } catch {
          this.tell({ ...(this.now || { joined: false, help: null, messages: [] }), server: "unreachable" });
          await new Promise((done) => setTimeout(done, RETRY_MS));
        }
      }
    }
  }

  const fill = (text, facts) => text.replace(/\{(\w+)\}/g, (_, name) => String(facts[name] ?? ""));

  function make(tag, attributes = {}, ...children) {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    return node;
  }

  /** What a state is called, and which sign goes with it: never colour alone. */
  function nameState(state) {
    if (state.server === "unreachable") return ["⚠", texts.away];
    if (!state.joined) return ["○", texts.join];
    if (state.server === "refused") return ["⚠", texts.refused];
    if (state.paused || state.notice?.due) return state.paused ? ["‖", texts.paused] : ["!", texts.notice_due];
    if (state.waiting > 0 && state.server !== "connected") return ["…", fill(texts.waiting, { n: state.waiting })];
    return ["●", texts.connected];
  }

  class Dialogs {
    constructor(apputils, widgets, desk) {
      this._apputils = apputils;
      this._Widget = widgets.Widget;
      this._desk = desk;
    }

    /** One form; the values as sent, or null. `send` may throw {text}: the form stays open and says it. */
    async ask(title, fields, accept, send, note = "") {
      const { Dialog } = this._apputils;
      const inputs = fields.map((field) =>
        make("input", { type: "text", className: "jp-mod-styled", style: "width:100%", name: field.name, value: field.value || "",
          maxLength: field.max || 500, autocomplete: "off", required: Boolean(field.required) }));
      const problem = make("p", { role: "alert", className: "nbpulse-problem", style: "max-width:40em;white-space:pre-line" });
      const notice = make("p", { textContent: note, style: "max-width:40em" });
      const labels = inputs.map((input, n) => make("label", { style: "display:block;margin-bottom:8px" },
        make("span", { textContent: fields[n].label, style: "display:block;margin-bottom:4px" }), input));
      let dialog = null;
      for (;;) {
        const body = new this._Widget({ node: make("div", {}, ...labels, notice, problem) });
        dialog = new Dialog({ title, body, focusNodeSelector: "input",
          buttons: [Dialog.cancelButton({ label: texts.cancel }), Dialog.okButton({ label: accept })] });
        const result = await dialog.launch();
        if (!result.button.accept) return null;
        const values = Object.fromEntries(inputs.map((input) => [input.name, input.value.trim()]));
        try {
          return { values, answer: await send(values) };
        } catch (error) {
          problem.textContent = error.text || texts.unreachable;
        }
      }
    }

    async join(address) {
      const fields = [
        { name: "url", label: texts.address, value: address, required: true },
        { name: "code", label: texts.code, max: 40, required: true },
        { name: "name", label: texts.your_name, max: 200, required: true },
        { name: "student_number", label: texts.number, max: 64 },
      ];
      let version; // of a notice that says more than the one below: the form then shows it and is sent once more
      const send = (values) => this._desk.ask("POST", "join", { ...values, notice_version: version })
        .catch((error) => { version = error.version || version; throw error; });
      const done = await this.ask(texts.join_title, fields, texts.join, send, texts.notice);
      if (done === null) return;
      const { course, name, resume_code: code } = done.answer;
      await this.say(fill(texts.joined, { course, name }), code ? [fill(texts.resume, { code })] : []);
    }

    say(title, paragraphs) {
      const { Dialog } = this._apputils;
      const body = new this._Widget({ node: make("div", {}, ...paragraphs.map((text) => make("p", { textContent: text }))) });
      return new Dialog({ title, body, buttons: [Dialog.okButton({ label: texts.close })] }).launch();
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
      if (result.button.accept) await this._desk.ask("DELETE", `help?path=${encodeURIComponent(path)}`);
    }
  }

  /** The toolbar's item of one notebook. */
  function makeItem(panel, status, dialogs, widgets, showMore) {
    const state = make("button", { type: "button", className: "jp-ToolbarButtonComponent nbpulse-state" });
    const hand = make("button", { type: "button", className: "jp-ToolbarButtonComponent nbpulse-hand" });
    const node = make("div", { className: "nbpulse-item", style: "display:flex;gap:2px;align-items:center" }, state, hand);
    node.setAttribute("role", "group");
    node.setAttribute("aria-label", "nbpulse");
    const label = make("span", { className: "jp-ToolbarButtonComponent-label" });
    const sign = make("span", { style: "margin-right:4px" });
    sign.setAttribute("aria-hidden", "true");
    label.setAttribute("aria-live", "polite");
    state.append(sign, label);
    const handLabel = make("span", { className: "jp-ToolbarButtonComponent-label" });
    const handSign = make("span", { innerHTML: HAND, style: "margin-right:4px;line-height:0" });
    handSign.setAttribute("aria-hidden", "true");
    hand.append(handSign, handLabel);

    const show = (now) => {
      [sign.textContent, label.textContent] = nameState(now);
      const isUp = Boolean(now.help && now.help.open);
      hand.style.display = now.joined ? "" : "none";
      hand.setAttribute("aria-pressed", String(isUp));
      const minutes = isUp ? Math.max(0, Math.floor((Date.now() - now.help.since) / 60_000)) : 0;
      handLabel.textContent = isUp ? fill(texts.help_open, { minutes }) : texts.help;
    };
    const forget = status.listen(show);
    const ticking = setInterval(() => status.now && show(status.now), 30_000);
    state.onclick = () => {
      const now = status.now;
      if (now === null) return undefined;
      if (!now.joined || now.server === "refused") {
        const prepared = panel.context.model.sharedModel.getMetadata("nbpulse") || {};
        return dialogs.join(prepared.url || now.address || "");
      }
      return showMore(now);
    };
    hand.onclick = () => {
      const isUp = Boolean(status.now && status.now.help && status.now.help.open);
      return isUp ? dialogs.takeDown(panel.context.path) : dialogs.raiseHand(panel.context.path);
    };
    const widget = new widgets.Widget({ node });
    widget.disposed.connect(() => {
      forget();
      clearInterval(ticking);
    });
    return widget;
  }

  /** Each message of the class once, however many notebooks are open. */
  function tellMessages(status, apputils) {
    const told = new Set();
    status.listen((now) => {
      for (const message of now.messages || []) {
        if (told.has(message.id)) continue;
        told.add(message.id);
        apputils.Notification.info(message.text[language] || message.text.en, { autoClose: false });
      }
    });
  }

  async function makePlugin() {
    const names = ["notebook", "apputils", "services", "coreutils", "translation"];
    const [notebook, apputils, services, coreutils, translation] = await Promise.all(
      names.map((name) => load(`@jupyterlab/${name}`)));
    const widgets = await load("@lumino/widgets");
    return {
      id: `${NAME}:plugin`,
      description: "Tells the class that the student is there; the raised hand; the class's messages",
      autoStart: true,
      requires: [notebook.INotebookTracker],
      optional: [translation.ITranslator],
      activate: async (app, tracker, translator) => {
        language = String((translator && translator.languageCode) || "en").startsWith("ja") ? "ja" : "en";
        const desk = new Desk(services, coreutils);
        texts = await desk.ask("GET", "texts");
        const observer = new Observer(desk);
        const status = new Status(desk);
        const dialogs = new Dialogs(apputils, widgets, desk);
        app.docRegistry.addWidgetExtension("Notebook", {
          createNew: (panel) => {
            follow(panel, observer);
            const showMore = async (now) => (await import(new URL("recording.js", HERE)))
              .showRecording(now, { ...apputils, ...widgets, desk, texts, language, fill, make });
            const item = makeItem(panel, status, dialogs, widgets, showMore);
            panel.toolbar.insertAfter("spacer", "nbpulse", item) || panel.toolbar.addItem("nbpulse", item);
            return item;
          },
        });
        notebook.NotebookActions.executed.connect((_, { notebook: where, cell }) => {
          const panel = tracker.find((one) => one.content === where);
          if (!panel || cell.model.type !== "markdown") return;
          observer.note("markdown_run", panel, describeCell(cell, where.widgets.indexOf(cell)));
        });
        tracker.currentChanged.connect((_, panel) => panel && observer.notePresence(panel));
        document.addEventListener("visibilitychange", () => {
          observer.notePresence();
          observer.flush();
        });
        setInterval(() => observer.notePresence(), PRESENCE_EVERY_MS);
        tellMessages(status, apputils);
      },
    };
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = {
    init: (shared) => {
      scope = shared;
    },
    get: async () => {
      const plugin = await makePlugin();
      return () => ({ __esModule: true, default: plugin });
    },
  };
})();
