// @ts-check
/** What the hand is on stands still. */
import { useRef, useState } from "../preact.js";

/**
 * Whether the mouse or the keyboard's focus is inside of an element, and the listeners that tell.
 * @returns {[boolean, Record<string, (event: any) => void>]}
 */
export function useHold() {
  const [isHeld, setHeld] = useState(false);
  const inside = useRef({ pointer: false, focus: false });
  /** @param {"pointer"|"focus"} what @param {boolean} is */
  const note = (what, is) => {
    inside.current[what] = is;
    setHeld(inside.current.pointer || inside.current.focus);
  };
  return [isHeld, {
    onPointerEnter: (event) => event.pointerType === "mouse" && note("pointer", true),
    onPointerLeave: () => note("pointer", false),
    onFocusIn: (event) => note("focus", event.target.matches(":focus-visible")),
    onFocusOut: (event) => note("focus", inside.current.focus && event.currentTarget.contains(event.relatedTarget)),
  }];
}
