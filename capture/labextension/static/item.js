// The item in a notebook's toolbar (and, where no notebook is, at the top of the page): how it stands with the class, what
// is new, and the hand.

import { guard } from "./guard.js";
import { fill, make, texts } from "./words.js";

const AGAIN_MS = 30_000; // minutes go by while nothing else changes
// Drawn here, since not every machine has a font with this sign.
export const HAND =
  '<svg xmlns="http://www.w3.org/2000/svg" width="14" height="14" viewBox="0 0 16 16"><path class="jp-icon3" fill="#616161" ' +
  'd="M5 9V3.5a1 1 0 0 1 2 0V8h.5V2a1 1 0 0 1 2 0v6h.5V3a1 1 0 0 1 2 0v5.5h.5V5a1 1 0 0 1 2 0v5.5A4.5 4.5 0 0 1 10 ' +
  '15H9a5 5 0 0 1-4-2L2.3 9.6a1 1 0 0 1 1.5-1.3z"/></svg>';

/** What a state is called, and which sign goes with it: never colour alone. */
function nameState(state) {
  if (state.server === "unreachable") return ["⚠", texts.away];
  if (!state.joined) return ["○", texts.join];
  if (state.server === "refused") return ["⚠", texts.refused];
  if (state.server === "approval") return ["…", texts.approval];
  if (state.paused) return ["‖", texts.paused];
  if (state.notice?.due) return ["!", texts.notice_due];
  if (state.waiting > 0 && state.server !== "connected") return ["…", fill(texts.waiting, { n: state.waiting })];
  return ["●", texts.connected];
}

function nameNews(state) {
  if (!state.joined) return "";
  if (state.unread > 0) return fill(texts.unread, { n: state.unread });
  return state.later > 0 ? fill(texts.put_off, { n: state.later }) : "";
}

/** The raised hand in words, `withPlace` as it stands in the queue: since when, who is coming. */
export function nameHelp(help, withPlace = texts.help_place) {
  if (!help || !help.open) return "";
  if (help.coming) return fill(texts.help_coming, { name: help.coming.name });
  const minutes = Math.max(0, Math.floor((Date.now() - help.since) / 60_000));
  return fill(help.place ? withPlace : texts.help_open, { minutes, place: help.place });
}

const makeButton = (name, sign, label) =>
  make("button", { type: "button", className: `jp-ToolbarButtonComponent nbpulse-button ${name}` }, sign, label);
const makeSign = () => make("span", { className: "nbpulse-sign", "aria-hidden": "true" });
const makeLabel = () => make("span", { className: "jp-ToolbarButtonComponent-label", "aria-live": "polite" });

/** The item of one notebook; `panel` null: of a page without one. `talk` opens the talk with the class. */
export function makeItem(panel, { status, forms, talk, widgets }) {
  const [sign, label, handSign, handLabel] = [makeSign(), makeLabel(), makeSign(), makeLabel()];
  handSign.innerHTML = HAND;
  const news = make("span", { className: "nbpulse-news", "aria-live": "polite" });
  const state = makeButton("nbpulse-state", sign, label);
  state.append(news);
  const hand = makeButton("nbpulse-hand", handSign, handLabel);
  const node = make("div", { className: "nbpulse-item", role: "group", "aria-label": "nbpulse" }, state, hand);

  const isUp = () => Boolean(status.now && status.now.help && status.now.help.open);
  const show = (now) => {
    const words = [...nameState(now), nameNews(now), nameHelp(now.help, texts.help_place_short) || texts.help];
    for (const [n, span] of [sign, label, news, handLabel].entries()) {
      if (span.textContent !== words[n]) span.textContent = words[n]; // the same again would be read aloud again
    }
    hand.hidden = panel === null || !now.joined;
    hand.setAttribute("aria-pressed", String(isUp()));
  };
  const forget = status.listen(show);
  const ticking = setInterval(guard(() => status.now && show(status.now)), AGAIN_MS);
  state.onclick = guard(() => {
    const now = status.now;
    if (now === null) return undefined;
    if (now.joined && now.server !== "refused") return now.paused || now.notice?.due ? talk.showRecording() : talk.open();
    const prepared = panel === null ? {} : panel.context.model.sharedModel.getMetadata("nbpulse") || {};
    return forms.join(prepared, now.address);
  });
  hand.onclick = guard(() => (isUp() ? forms.takeDown : forms.raiseHand).call(forms, panel.context.path));
  const widget = new widgets.Widget({ node });
  widget.disposed.connect(guard(() => {
    forget();
    clearInterval(ticking);
  }));
  return widget;
}
