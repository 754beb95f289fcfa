// @ts-check
/** The ways between the pages of one course. */
import { html } from "../preact.js";
import { t } from "../i18n.js";

/** In the order of a class: now, before, after, and what is set once. "" is the live page. */
const PAGES = ["", "people", "data"];

const ANALYSTS = ["data"];

/** @param {{courseId: string, current: string, role?: string}} props `current`: the page that is shown, "" for the live one */
export function CourseNav({ courseId, current, role = "" }) {
  const base = `/courses/${encodeURIComponent(courseId)}`;
  return html`<nav class="course-nav" aria-label=${t("nav.title")}>${(role === "analyst" ? ANALYSTS : PAGES).map((name) => html`<a key=${name} data-nav=${name || "live"}
    href=${name ? `${base}/${name}` : base} aria-current=${name === current ? "page" : "false"}>${t(`nav.${name || "live"}`)}</a>`)}</nav>`;
}
