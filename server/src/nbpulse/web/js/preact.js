// @ts-check
/** The one seam to the vendored view library: everything else imports from here. */
import { Component, h, render } from "../vendor/preact.js";
import htm from "../vendor/htm.js";

/** @template T @typedef {{value: T, peek: () => T}} Signal */

export { Component, render };
export { useEffect, useLayoutEffect, useRef, useState } from "../vendor/preact-hooks.js";
export { batch, computed, effect, signal } from "../vendor/signals.js";

export const html = htm.bind(h);

/**
 * A component that renders again only when a prop changed by identity (or a signal it read did).
 * @param {(props: any) => any} view
 */
export function memo(view) {
  return class extends Component {
    /** @param {any} next @param {any} state */
    shouldComponentUpdate(next, state) {
      if (state !== this.state) return true;
      for (const name in next) if (next[name] !== this.props[name]) return true;
      return false;
    }
    render() {
      return view(this.props);
    }
  };
}
