// @ts-check
/** The signs, drawn as lines so that they look the same on every machine; beside a word, or on a button that has a name. */
import { html } from "../preact.js";

/** @type {Record<string, string>} */
const PATHS = {
  help: "M7.500 12.500V6.200a1.400 1.400 0 0 1 2.800 0V11m0-.500V4.400a1.400 1.400 0 0 1 2.800 0V11m0-.500V5.400a1.400 1.400 0 0 1 2.800 0v6.100m0-2.900a1.400 1.400 0 0 1 2.800 0v5.600c0 3.800-2.300 6.300-5.900 6.300-2.700 0-4.300-1-5.600-3.300L4.300 13.100c-.900-1.800 1.200-2.900 2.200-1.400l1 1.700",
  stuck: "M6 6l12 12M18 6L6 18",
  wrong_answer: "M5 9h14M5 15h14M16 5L8 19",
  same_error: "M5 10a7 7 0 0 1 13-1.500M19 5v4h-4M19 14a7 7 0 0 1-13 1.500M5 19v-4h4",
  long_run: "M7 4h10M7 20h10M8 4c0 5 8 6 8 8s-8 3-8 8M16 4c0 5-8 6-8 8s8 3 8 8",
  no_progress: "M5 12h9M16 6v12M19 6v12",
  not_started: "M12 5v0.010M5 12v0.010M12 19v0.010M19 12v0.010M7 7v0.010M17 7v0.010M7 17v0.010M17 17v0.010",
  running: "M9 6l9 6-9 6z",
  thinking: "M6 12v0.010M12 12v0.010M18 12v0.010",
  kernel_dead: "M13 4L7 13h5l-1 7 6-9h-5z",
  away: "M12 7H6v11h11v-6M14 5h5v5M19 5l-8 8",
  hot: "M12 4l9 16H3zM12 10v5M12 17.500v0.010",
  idle: "M9 6v12M15 6v12",
  behind: "M12 5v14M6.500 13.500L12 19l5.500-5.500",
  ok: "M5 12.500l4.500 4.500L19 7.500",
  later: "M12 5a7 7 0 1 0 .010 0zM12 8.500V12l2.500 2",
  mute: "M6 16h12l-1.500-2.500V10a4.500 4.500 0 0 0-9 0v3.500zM10.500 19h3M4.500 4.500l15 15",
  letter: "M4.500 7h15v10h-15zM5 7.500l7 5.500 7-5.500",
  open: "M5 12h13M12.500 6.500L18 12l-5.500 5.500",
  paused: "M8 6h8M8 18h8M12 6v12",
  offline: "M12 6a6 6 0 1 0 .010 0z",
};

/** @param {{kind: string}} props */
export function Glyph({ kind }) {
  return html`<svg class="glyph" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[kind]} /></svg>`;
}
