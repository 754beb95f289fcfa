// @ts-check
/** The start of the page: language, theme, sign-in by the link's code, and which page to show. */
import { ApiError, fetchMe, signIn } from "./api.js";
import { loadLanguage, preferredLanguage } from "./i18n.js";
import { html, render, signal } from "./preact.js";
import { clockOffsetMs, now, setTheme, theme } from "./store.js";
import { Board } from "./views/board.js";
import { Connecting, Courses, Failed, SignInNeeded } from "./views/pages.js";

/** @type {{value: {name: string, [detail: string]: any}}} */
const page = signal({ name: "connecting" });

function App() {
  const { name, ...detail } = page.value;
  const view = { connecting: Connecting, board: Board, courses: Courses, failed: Failed, sign_in: SignInNeeded }[name];
  return html`<${view} ...${detail} />`;
}

/** @type {?string} the link's one-use code until the server has answered about it */
let code = null;

/** Exchanges `#code=` for a session; the code leaves the address bar before anything else happens. */
async function exchangeCode() {
  const given = new URLSearchParams(location.hash.slice(1)).get("code");
  if (given) {
    code = given;
    history.replaceState(null, "", location.pathname + location.search);
  }
  if (!code) return;
  try {
    await signIn(code);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status === 0 || error.status >= 500) throw error;
    code = null;
    throw error;
  }
  code = null;
}

/** @returns {?string} */
function courseInPath() {
  return /^\/courses\/([^/]+)\/?$/.exec(location.pathname)?.[1] ?? null;
}

async function route() {
  page.value = { name: "connecting" };
  let refused = null;
  try {
    await exchangeCode().catch((error) => {
      if (!(error instanceof ApiError) || error.status === 0 || error.status >= 500) throw error;
      refused = error; // a used link is no harm where a session still holds
    });
    const courseId = courseInPath();
    if (courseId) {
      page.value = { name: "board", courseId: decodeURIComponent(courseId) };
      return;
    }
    const { courses } = await fetchMe();
    const staffed = courses.filter((/** @type {any} */ one) => one.role !== "student");
    if (staffed.length === 1) {
      history.replaceState(null, "", `/courses/${encodeURIComponent(staffed[0].id)}${location.search}`);
      page.value = { name: "board", courseId: staffed[0].id };
    } else {
      page.value = { name: "courses", courses };
    }
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) page.value = { name: "sign_in", error: refused };
    else page.value = { name: "failed", error, again: route };
  }
}

setTheme(theme.value);
setInterval(() => (now.value = Date.now() + clockOffsetMs.value), 1000);
addEventListener("hashchange", route);
await loadLanguage(preferredLanguage());
render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
await route();
