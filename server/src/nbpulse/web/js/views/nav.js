// @ts-check
/** The ways between the pages of one course. */
import { html } from "../preact.js";
import { t } from "../i18n.js";

/** In the order of a class: now, before, after, and what is set once. "" is the live page. */
const PAGES = ["before", "", "map", "projector", "report", "people", "settings", "data"];
const ANALYSTS = ["data"];
/** Shown to the class from another screen. */
const IN_A_WINDOW = "projector";

/** @param {{courseId: string, current: string, role?: string}} props `current`: the page that is shown, "" for the live one */
export function CourseNav({ courseId, current, role = "" }) {
  const base = `/courses/${encodeURIComponent(courseId)}`;
  return html`<nav class="course-nav" aria-label=${t("nav.title")}><a data-nav="courses" href="/courses">${t("nav.courses")}</a>${(role === "analyst" ? ANALYSTS : PAGES).map((name) => html`<a key=${name} data-nav=${name || "live"}
    target=${name === IN_A_WINDOW ? "_blank" : undefined} rel=${name === IN_A_WINDOW ? "noopener" : undefined}
    href=${name ? `${base}/${name}` : base} aria-current=${name === current ? "page" : "false"}>${t(`nav.${name || "live"}`)}</a>`)}</nav>`;
}

/** In a window of its own, one per course, which can stay on the other screen. @param {string} courseId */
export function openProjector(courseId) {
  open(`/courses/${encodeURIComponent(courseId)}/projector`, `nbpulse-projector-${courseId}`, "popup,width=1280,height=720");
}
