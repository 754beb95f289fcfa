// @ts-check
/** The start of the page: language, theme, sign-in by the link's code, and which page to show. */
import { ApiError, describeInvitation, fetchErrors, fetchMe, signIn } from "./api.js";
import { language, loadLanguage, preferredLanguage } from "./i18n.js";
import { html, render, signal } from "./preact.js";
import { clockOffsetMs, me, now, setTheme, theme } from "./store.js";
import { Account } from "./views/account.js";
import { Board } from "./views/board.js";
import { Connecting, Failed, NoSuchPage, Refused } from "./views/pages.js";

/** @type {{value: {name: string, [detail: string]: any}}} */
const page = signal({ name: "connecting" });

/**
 * A course's pages by the first word after the course in their address, loaded when they are opened. Each is given
 * `courseId`, `title` and `role` of the course, and `item`: the rest of its address.
 * @type {Record<string, () => Promise<any>>}
 */
const COURSE_PAGES = {
  before: async () => (await import("./views/before.js")).Before,
  join: async () => (await import("./views/join.js")).JoinLarge,
  handout: async () => (await import("./views/join.js")).Handout,
  students: async () => (await import("./views/student.js")).StudentPage,
  cells: async () => (await import("./views/cell.js")).CellPage,
  errors: async () => (await import("./views/error.js")).ErrorPage,
  data: async () => (await import("./views/data.js")).Data,
  projector: async () => (await import("./views/projector.js")).Projector,
  map: async () => (await import("./views/map.js")).CourseMap,
  people: async () => (await import("./views/people.js")).People,
  settings: async () => (await import("./views/settings.js")).Settings,
  replay: async () => (await import("./views/replay.js")).Replay,
  report: async () => (await import("./views/report.js")).Reports,
};

function App() {
  const { name, view: loaded, ...detail } = page.value;
  const view = { connecting: Connecting, board: Board, course_page: loaded, courses: loaded, join_student: loaded, failed: Failed, sign_in: loaded, password: loaded, refused: Refused, invited: loaded, no_page: NoSuchPage }[name];
  return html`<${view} ...${detail} /><${Account} />`;
}

const STAFF = ["instructor", "assistant"];

/** @type {?string} the link's one-use code until the server has answered about it */
let code = null;

let isPasswordWanted = false;

/** @type {?string} an invitation's code, until it is accepted or refused */
let invitation = null;

/** Exchanges `#code=` for a session; the code leaves the address bar before anything else happens. */
async function exchangeCode() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get("code");
  if (fragment.has("invite")) {
    invitation = fragment.get("invite");
    history.replaceState(null, "", location.pathname + location.search);
  }
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

/** What another system said no with, `#refused=`, as an error; it leaves the address bar too. @returns {Promise<?ApiError>} */
async function readRefusal() {
  const code = new URLSearchParams(location.hash.slice(1)).get("refused");
  if (!code) return null;
  history.replaceState(null, "", location.pathname + location.search);
  const errors = await fetchErrors().catch(() => []); // then its code has to do
  const { title, todo } = errors.find((/** @type {any} */ one) => one.code === code)?.[language.value] ?? {};
  return new ApiError(403, { code, title, hint: todo });
}

/** The course in the address, which of its pages, and of what. @returns {{courseId: string, name: string, item: string}|null} */
function placeInPath() {
  const found = /^\/courses\/([^/]+)(?:\/([^/]+)(?:\/(.+?))?)?\/?$/.exec(location.pathname);
  return found && { courseId: decodeURIComponent(found[1]), name: found[2] ?? "", item: decodeURIComponent(found[3] ?? "") };
}

/** Shows an invitation to whoever opened its link, signed in or not. */
async function showInvitation() {
  const given = /** @type {string} */ (invitation);
  const who = await fetchMe().catch((error) => {
    if (!(error instanceof ApiError) || error.status !== 401) throw error;
    return { user_id: "", display_name: "" };
  });
  me.value = who;
  const { course_title: course, role } = await describeInvitation(given);
  const done = (/** @type {any} */ accepted) => {
    isPasswordWanted = !me.value.user_id;
    const to = accepted.course_id ?? accepted.courses[0].id;
    history.replaceState(null, "", isPasswordWanted ? "/" : `/courses/${to}`);
    invitation = null;
    void route();
  };
  page.value = { name: "invited", view: (await import("./views/invited.js")).Invited, code: given, course, role, done };
}

async function route() {
  page.value = { name: "connecting" };
  const joining = /^\/join(?:\/([^/]+))?\/?$/.exec(location.pathname);
  if (joining) {
    const { Join } = await import("./views/join.js");
    page.value = { name: "join_student", view: Join, code: decodeURIComponent(joining[1] ?? "") };
    return;
  }
  if (location.pathname === "/shared/report") {
    // Nobody signs in for it, and the secret stays in the fragment, so that the page can be kept and loaded again.
    page.value = { name: "course_page", view: (await import("./views/shared_report.js")).SharedReport, code: location.hash.slice(1) };
    return;
  }
  let refused = await readRefusal();
  try {
    await exchangeCode().catch((error) => {
      if (!(error instanceof ApiError) || error.status === 0 || error.status >= 500) throw error;
      refused = error; // a used link is no harm where a session still holds
    });
    if (invitation) return await showInvitation();
    const wanted = refused || location.pathname !== "/" ? null : (await import("./views/sign_in.js")).takeReturnPath();
    if (wanted) history.replaceState(null, "", wanted + location.search);
    const place = placeInPath();
    if (place && !place.name) {
      page.value = { name: "board", courseId: place.courseId };
      return;
    }
    const { courses, ...who } = await fetchMe();
    me.value = who;
    if (place) {
      const { courseId, name, item } = place;
      const { title = "", role = "", time_zone: zone } = courses.find((/** @type {any} */ one) => one.id === courseId) ?? {};
      const load = Object.hasOwn(COURSE_PAGES, name) && COURSE_PAGES[name];
      if (load) page.value = { name: "course_page", view: await load(), courseId, title, role, zone, item };
      else page.value = { name: "no_page", courseId };
      return;
    }
    if (isPasswordWanted && !refused) {
      isPasswordWanted = false;
      page.value = { name: "password", view: (await import("./views/sign_in.js")).FirstPassword, done: route };
      return;
    }
    const attended = courses.filter((/** @type {any} */ one) => one.role === "student");
    const isStudent = attended.length > 0 && !courses.some((/** @type {any} */ one) => STAFF.includes(one.role));
    if (location.pathname === "/me" || (location.pathname === "/" && isStudent)) {
      if (location.pathname !== "/me") history.replaceState(null, "", `/me${location.search}`);
      page.value = { name: "course_page", view: (await import("./views/me.js")).Me, courses: attended };
      return;
    }
    const staffed = courses.filter((/** @type {any} */ one) => STAFF.includes(one.role) && !one.is_archived);
    if (staffed.length === 1 && location.pathname === "/") {
      history.replaceState(null, "", `/courses/${encodeURIComponent(staffed[0].id)}${location.search}`);
      page.value = { name: "board", courseId: staffed[0].id };
    } else {
      page.value = { name: "courses", view: (await import("./views/courses.js")).Courses };
    }
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (invitation) {
      invitation = null;
      page.value = { name: "refused", error };
    } else if (error.status === 401) page.value = { name: "sign_in", view: (await import("./views/sign_in.js")).SignIn, error: refused };
    else page.value = { name: "failed", error, again: route };
  }
}

setTheme(theme.value);
setInterval(() => (now.value = Date.now() + clockOffsetMs.value), 1000);
addEventListener("hashchange", route);
await loadLanguage(preferredLanguage());
render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
await route();
