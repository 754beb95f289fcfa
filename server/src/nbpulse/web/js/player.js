// @ts-check
/**
 * A past class being played: the same reducer as the live board's, fed with stretches of the meeting in place of a
 * socket. The next stretch is asked for before the present one is over; a jump asks for the one that begins there.
 */
import { ApiError, fetchReplay } from "./api.js";
import { applyFrame, applySnapshot } from "./state.js";

const TICK_MS = 250;
const ASK_AHEAD = 0.5; // of a stretch
const STEPS = 60;

/** @typedef {{start: number, end: number, at: number, until: number, step_ms: number, snapshot: any, frames: any[]}} Stretch times in ms since 1970 */
/** @typedef {{at: number, start: number, end: number, speed: number, isPlaying: boolean, isWaiting: boolean, problem: ?ApiError}} Playing */

export class Player {
  /** @param {string} courseId @param {string} meetingId @param {(state: import("./state.js").State, playing: Playing) => void} show @param {(playing: Playing) => void} tell */
  constructor(courseId, meetingId, show, tell) {
    this.courseId = courseId;
    this.meetingId = meetingId;
    this.show = show;
    this.tell = tell;
    /** @type {?string} */
    this.notebookId = null;
    /** @type {Playing} */
    this.playing = { at: 0, start: 0, end: 0, speed: 10, isPlaying: false, isWaiting: true, problem: null };
    /** @type {?Stretch} */
    this.stretch = null;
    /** @type {?Stretch} */
    this.next = null;
    /** @type {?import("./state.js").State} */
    this.state = null;
    this.asked = 0; // which question the answer must belong to
    this.isAsking = false;
    this.timer = setInterval(() => this.tick(), TICK_MS);
  }

  stop() {
    clearInterval(this.timer);
    this.asked += 1;
  }

  /** Goes to a time; null: the beginning. @param {?number} at */
  async jump(at) {
    this.next = null;
    this.change({ isWaiting: true, at: at ?? this.playing.at });
    const stretch = await this.ask(at);
    if (stretch) this.enter(stretch);
  }

  /** @param {?string} notebookId */
  showNotebook(notebookId) {
    this.notebookId = notebookId;
    return this.jump(this.playing.at);
  }

  /** Play or pause; at the end, from the beginning. */
  toggle() {
    const { isPlaying, at, end, start } = this.playing;
    if (!isPlaying && at >= end) void this.jump(start);
    this.change({ isPlaying: !isPlaying });
  }

  /** @param {number} speed how many seconds of the class in one */
  setSpeed(speed) {
    this.next = null; // its steps were made for another speed
    this.change({ speed });
  }

  /** @param {?number} at @returns {Promise<?Stretch>} null: nobody wants it any more, or it failed */
  async ask(at) {
    const number = (this.asked += 1);
    const stepMs = Math.min(10_000, Math.max(1_000, (this.playing.speed * TICK_MS) / 2));
    this.isAsking = true;
    try {
      const found = await fetchReplay(this.courseId, this.meetingId, { notebook: this.notebookId, at, step_ms: Math.round(stepMs), span_ms: Math.round(stepMs * STEPS) });
      return number === this.asked ? found : null;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (number === this.asked) this.change({ problem: error, isPlaying: false, isWaiting: false });
      return null;
    } finally {
      if (number === this.asked) this.isAsking = false;
    }
  }

  /** @param {Stretch} stretch */
  enter(stretch) {
    this.stretch = stretch;
    this.state = applySnapshot(stretch.snapshot);
    const { at, start, end } = stretch;
    this.change({ at, start, end, isWaiting: false, problem: null });
    this.show(this.state, this.playing);
  }

  tick() {
    const { isPlaying, isWaiting, speed, end } = this.playing;
    if (!isPlaying || isWaiting || !this.stretch || !this.state) return;
    const at = Math.min(end, this.playing.at + TICK_MS * speed);
    const { until, at: from } = this.stretch;
    if (at > from + (until - from) * ASK_AHEAD && until < end) void this.askAhead(until);
    if (at >= until && until < end) {
      if (this.next) {
        this.enter(this.next);
        this.next = null;
      }
      return; // else the class stands still until the answer is here
    }
    let state = this.state;
    for (const frame of this.stretch.frames) if (frame.seq === state.seq + 1 && frame.at <= at) state = applyFrame(state, frame);
    this.change({ at, isPlaying: at < end });
    if (state !== this.state) this.show((this.state = state), this.playing);
  }

  /** @param {number} at */
  async askAhead(at) {
    if (this.next || this.isAsking) return;
    this.next = await this.ask(at);
  }

  /** @param {Partial<Playing>} change */
  change(change) {
    this.playing = { ...this.playing, ...change };
    this.tell(this.playing);
  }
}
