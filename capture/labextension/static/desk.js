// The way to our own server extension, which knows the class's address and token; the browser never does.

import { guard, noteFault } from "./guard.js";
import { language } from "./words.js";

const WAIT_S = 25;
const RETRY_MS = 5_000;

/** Something the student is to be told, in their language. */
export class Refusal {
  constructor(status, { text, notice_version: version } = {}) {
    this.status = status;
    this.text = text || "";
    this.version = version; // of the notice that has to be shown first
  }
}

/** Speaks to the server extension; the application adds its own token and XSRF header. */
export class Desk {
  constructor(name, services, coreutils) {
    this._name = name;
    this._connection = services.ServerConnection;
    this._settings = services.ServerConnection.makeSettings();
    this._join = coreutils.URLExt.join;
  }

  /** The answer's JSON. Throws the network's error, or a Refusal. `keepalive`: goes out even as the page closes. */
  async ask(method, path, body, { keepalive = false } = {}) {
    const mark = path.includes("?") ? "&" : "?";
    const url = this._join(this._settings.baseUrl, this._name, `${path}${mark}language=${language}`);
    const request = { method, keepalive, ...(body === undefined ? {} : { body: JSON.stringify(body) }) };
    const answer = await this._connection.makeRequest(url, request, this._settings);
    const content = answer.status === 204 ? null : await answer.json().catch(() => null);
    if (!answer.ok) throw new Refusal(answer.status, content || {});
    return content;
  }
}

/** What listeners are told again and again; each newcomer hears the last word at once. */
class Source {
  constructor() {
    this._listeners = new Set();
    this.now = null;
  }

  listen(listener) {
    const guarded = guard(listener);
    this._listeners.add(guarded);
    if (this.now !== null) guarded(this.now);
    return () => this._listeners.delete(guarded);
  }

  tell(news) {
    this.now = news;
    for (const listener of this._listeners) listener(news);
  }
}

/** The state as the server extension tells it, for every toolbar at once. */
export class Status extends Source {
  constructor(desk) {
    super();
    this._desk = desk;
  }

  async watch() {
    let after = -1;
    for (;;) {
      try {
        const state = await this._desk.ask("GET", `state?after=${after}&wait_s=${WAIT_S}`);
        after = state.revision;
        this.tell(state);
      } catch {
        const known = this.now || { joined: false, help: null, unread: 0, later: 0, talk: 0 };
        this.tell({ ...known, server: "unreachable" });
        await new Promise((done) => setTimeout(done, RETRY_MS)); // guard: only resolves
      }
    }
  }
}

/** The messages, read anew whenever the state says that there is news. */
export class Messages extends Source {
  constructor(desk, status) {
    super();
    this._desk = desk;
    this._revision = null;
    this.now = [];
    status.listen((state) => this._follow(state));
  }

  async _follow(state) {
    if (state.talk === this._revision || state.server === "unreachable") return;
    this._revision = state.talk;
    try {
      this.tell((await this._desk.ask("GET", "messages")).messages);
    } catch (error) {
      this._revision = null; // asked again at the next state
      if (error instanceof Refusal) noteFault(new Error(`messages: ${error.status}`));
    }
  }

  async answer(text, threadId) {
    await this._desk.ask("POST", "messages", { text, thread_id: threadId });
  }

  async decide(id, state) {
    await this._desk.ask("PUT", `messages/${encodeURIComponent(id)}/state`, { state });
  }
}
