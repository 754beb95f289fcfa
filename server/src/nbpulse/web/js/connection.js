// @ts-check
/**
 * The board's line to the class: snapshot, one-use ticket, WebSocket, frames.
 * A gap in the sequence waits a second for its frames, then asks for a new snapshot; a lost line comes
 * back by itself (exponential back-off with jitter). What was shown stays shown meanwhile.
 */
import { ApiError, fetchLive, fetchTicket } from "./api.js";
import { applyFrame, applySnapshot, placeFrame } from "./state.js";

const SILENCE_STALE_MS = 25_000; // one ping of 20 s missed
const SILENCE_RECONNECT_MS = 45_000;
const GAP_WAIT_MS = 1_000;
const MEASURE_EVERY_MS = 1_000; // a figure that flickers is not read
const BACKOFF_FIRST_MS = 300;
const BACKOFF_MOST_MS = 10_000;

/**
 * `problem`: why the last try failed, null while all is well.
 * @typedef {{phase: "connecting"|"live"|"stale"|"reconnecting", lagMs: ?number, asOf: ?number, problem: ?ApiError}} Link
 */
/**
 * @typedef {Object} Listener
 * @property {(state: import("./state.js").State) => void} onState
 * @property {(link: Link) => void} onLink
 * @property {(error: ApiError) => void} onRefused the server said no (401, 403, 404): retrying is useless
 */

/**
 * What is read and how it is put together; `view` is what the socket is asked for.
 * @typedef {Object} Feed
 * @property {"board"|"projector"} view
 * @property {(courseId: string, notebookId: ?string) => Promise<any>} read
 * @property {(snapshot: any) => any} applySnapshot @property {(state: any, frame: any) => any} applyFrame
 * @property {(state: any, frame: any) => "next"|"old"|"gap"} placeFrame
 */
/** @type {Feed} */
const BOARD = { view: "board", read: fetchLive, applySnapshot, applyFrame, placeFrame };

export class Connection {
  /** @param {string} courseId @param {Listener} listener @param {Feed} [feed] */
  constructor(courseId, listener, feed = BOARD) {
    this.courseId = courseId;
    this.listener = listener;
    this.feed = feed;
    /** @type {?string} */
    this.notebookId = null;
    /** @type {?import("./state.js").State} */
    this.state = null;
    /** @type {?WebSocket} */
    this.socket = null;
    this.clockOffsetMs = 0; // server clock minus ours
    this.attempt = 0;
    this.heardAt = 0;
    this.measuredAt = 0;
    this.isStopped = false;
    this.isResyncing = false;
    this.isResyncWanted = false;
    /** @type {Map<number, any>} frames that came before the one they follow */
    this.early = new Map();
    /** @type {Record<string, ReturnType<typeof setTimeout>|undefined>} */
    this.timers = {};
    /** @type {Link} */
    this.link = { phase: "connecting", lagMs: null, asOf: null, problem: null };
  }

  start() {
    this.timers.watch = setInterval(() => this.watch(), 1_000);
    this.wake = () => this.isWaiting() && !document.hidden && this.connect();
    addEventListener("online", this.wake);
    document.addEventListener("visibilitychange", this.wake);
    this.connect();
  }

  stop() {
    this.isStopped = true;
    for (const timer of Object.values(this.timers)) clearTimeout(timer);
    removeEventListener("online", /** @type {any} */ (this.wake));
    document.removeEventListener("visibilitychange", /** @type {any} */ (this.wake));
    this.socket?.close(1000);
  }

  /** Shows another notebook of the course. @param {?string} notebookId */
  showNotebook(notebookId) {
    this.notebookId = notebookId;
    this.send({ t: "notebook", id: notebookId });
    this.resync();
  }

  isWaiting() {
    return this.timers.retry !== undefined;
  }

  async connect() {
    clearTimeout(this.timers.retry);
    this.timers.retry = undefined;
    try {
      if (!this.state) await this.readSnapshot();
      const { ticket } = await fetchTicket(this.courseId);
      if (!this.isStopped) this.open(ticket);
    } catch (error) {
      this.fail(error);
    }
  }

  async readSnapshot() {
    const askedAt = Date.now();
    const snapshot = await this.feed.read(this.courseId, this.notebookId);
    const answeredAt = Date.now();
    this.clockOffsetMs = snapshot.at - (askedAt + answeredAt) / 2;
    this.early.clear();
    this.take(this.feed.applySnapshot(snapshot));
  }

  /** @param {string} ticket */
  open(ticket) {
    const path = `/api/v1/courses/${encodeURIComponent(this.courseId)}/ws`;
    const socket = new WebSocket(location.origin.replace(/^http/, "ws") + path);
    this.socket = socket;
    this.heardAt = Date.now();
    socket.onopen = () => {
      const { epoch, seq } = /** @type {any} */ (this.state);
      this.send({ t: "hello", ticket, epoch, after_seq: seq, notebook: this.notebookId, view: this.feed.view });
    };
    socket.onmessage = (message) => {
      if (socket !== this.socket) return;
      this.heardAt = Date.now();
      this.receive(JSON.parse(message.data));
    };
    socket.onclose = (event) => {
      if (socket !== this.socket) return;
      this.socket = null;
      if (event.code === 4401 || event.code === 4403) {
        this.fail(new ApiError(event.code - 4000, {}));
      } else {
        this.retry();
      }
    };
  }

  /** @param {any} frame */
  receive(frame) {
    if (frame.t === "d") {
      this.takeFrame(frame);
    } else if (frame.t === "hello") {
      this.attempt = 0;
      if (frame.epoch !== this.state?.epoch) this.resync();
      this.report({ phase: "live", problem: null });
    } else if (frame.t === "snapshot") {
      this.early.clear();
      this.take(this.feed.applySnapshot(frame.snapshot));
    } else if (frame.t === "resync") {
      this.resync();
    } else if (frame.t === "ping") {
      this.send({ t: "pong" });
      this.measure(frame.at);
    }
  }

  /** @param {any} frame */
  takeFrame(frame) {
    if (!this.state || this.isResyncing) return;
    this.early.set(frame.seq, frame);
    let state = this.state;
    try {
      for (let next = frame; next && this.feed.placeFrame(state, next) !== "gap"; next = this.early.get(state.seq + 1)) {
        this.early.delete(next.seq);
        state = this.feed.applyFrame(state, next);
      }
    } catch (error) {
      console.warn(error);
      this.resync();
      return;
    }
    if (state !== this.state) this.take(state);
    this.measure(frame.at);
    if (this.early.size === 0) {
      clearTimeout(this.timers.gap);
      this.timers.gap = undefined;
    } else {
      this.timers.gap ??= setTimeout(() => this.resync(), GAP_WAIT_MS);
    }
  }

  /** Reads a new snapshot and goes on from it, on the same socket. */
  async resync() {
    clearTimeout(this.timers.gap);
    this.timers.gap = undefined;
    if (this.isResyncing) {
      this.isResyncWanted = true;
      return;
    }
    this.isResyncing = true;
    try {
      do {
        this.isResyncWanted = false;
        await this.readSnapshot();
      } while (this.isResyncWanted && !this.isStopped);
      this.isResyncing = false;
      this.send({ t: "resume", epoch: this.state?.epoch, after_seq: this.state?.seq });
    } catch (error) {
      this.isResyncing = false;
      this.fail(error);
    }
  }

  /** @param {unknown} error */
  fail(error) {
    if (!(error instanceof ApiError)) {
      console.error(error); // an answer we could not read: keep what is shown and try again
      this.retry();
      return;
    }
    if ([401, 403, 404].includes(error.status)) {
      this.stop();
      this.listener.onRefused(error);
      return;
    }
    this.retry(error);
  }

  /** @param {?ApiError} [problem] */
  retry(problem = null) {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    if (this.isStopped || this.isWaiting()) return;
    const backoff = Math.min(BACKOFF_FIRST_MS * 2 ** this.attempt, BACKOFF_MOST_MS);
    this.attempt += 1;
    this.report({ phase: this.state ? "reconnecting" : "connecting", lagMs: null, problem });
    const waitMs = Math.max((problem?.retryAfterS ?? 0) * 1000, backoff * (0.5 + Math.random()));
    this.timers.retry = setTimeout(() => this.connect(), waitMs);
  }

  /** @param {import("./state.js").State} state */
  take(state) {
    if (this.isStopped) return;
    this.state = state;
    this.listener.onState(state);
  }

  /** @param {number} at when the server sent it, its clock */
  measure(at) {
    if (this.link.phase === "live" && this.link.lagMs !== null && Date.now() - this.measuredAt < MEASURE_EVERY_MS) return;
    this.measuredAt = Date.now();
    const wayMs = Math.max(0, Date.now() + this.clockOffsetMs - at);
    this.report({ phase: "live", lagMs: wayMs + (this.state?.health?.lag_ms ?? 0), asOf: at });
  }

  watch() {
    if (!this.socket || this.link.phase === "connecting") return;
    const silentMs = Date.now() - this.heardAt;
    if (silentMs > SILENCE_RECONNECT_MS) this.retry();
    else if (silentMs > SILENCE_STALE_MS) this.report({ phase: "stale", lagMs: null });
  }

  /** @param {Partial<Link>} change */
  report(change) {
    this.link = { ...this.link, asOf: this.link.asOf ?? this.state?.at ?? null, ...change };
    this.listener.onLink(this.link);
  }

  /** @param {any} message */
  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }
}
