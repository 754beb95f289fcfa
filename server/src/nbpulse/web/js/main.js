// @ts-check
/** The start of the page: language, theme, sign-in by the link's code, and which page to show. */
import { ApiError, fetchMe, signIn } from "./api.js";
import { loadLanguage, preferredLanguage } from "./i18n.js";
import { html, render, signal } from "./preact.js";
import { clockOffsetMs, me, now, setTheme, theme } from "./store.js";
import { Account } from "./views/account.js";
import { Board } from "./views/board.js";
import { Connecting, Courses, Failed } from "./views/pages.js";
import { FirstPassword, SignIn } from "./views/sign_in.js";

/** @type {{value: {name: string, [detail: string]: any}}} */
const page = signal({ name: "connecting" });

function App() {
  const { name, ...detail } = page.value;
  const view = { connecting: Connecting, board: Board, courses: Courses, failed: Failed, sign_in: SignIn, password: FirstPassword }[name];
  return html`<${view} ...${detail} /><${Account} />`;
}

/** @type {?string} the link's one-use code until the server has answered about it */
let code = null;

let isPasswordWanted = false;

/** Exchanges `#code=` for a session; the code leaves the address bar before anything else happens. */
async function exchangeCode() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get("code");
  if (given) {
    code = given;
    isPasswordWanted = fragment.has("password");
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
    const { courses, ...who } = await fetchMe();
    me.value = who;
    if (isPasswordWanted && !refused) {
      isPasswordWanted = false;
      page.value = { name: "password", done: route };
      return;
    }
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
