// @ts-check
/** Requests to the server. Every failure becomes an ApiError that can be shown: code, what happened, what to do. */
import { noteAsOf } from "./as_of.js";
import { language } from "./i18n.js";
import { course } from "./store.js";

const NOTEBOOK_TYPE = "application/x-ipynb+json";
/** As what a file is sent; what is none of them is a table. */
const FILE_TYPES = [NOTEBOOK_TYPE, "image/png", "image/jpeg"];

export class ApiError extends Error {
  /** @param {number} status 0 when the server was not reached @param {any} problem an RFC 9457 body, may be {} */
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.code = problem.code ?? (status ? `HTTP ${status}` : "");
    this.title = problem.title ?? "";
    this.detail = problem.detail ?? "";
    this.hint = problem.hint ?? "";
    /** @type {?import("./state.js").Claim} who was quicker */
    this.claim = problem.claim ?? null;
    this.retryAfterS = Number(problem.retry_after_s) || 0;
  }
}

/**
 * @param {string} method @param {string} path @param {any} [body]
 * @param {string} [ownCourse] of which of one's courses, where one asks as its student
 * @returns {Promise<any>} the decoded answer, null for 204
 * @throws {ApiError}
 */
export async function request(method, path, body, ownCourse) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json", "Accept-Language": language.value };
  if (ownCourse) headers["NBPULSE-Course"] = ownCourse;
  const isFile = body instanceof Blob;
  if (body !== undefined) headers["Content-Type"] = !isFile ? "application/json" : FILE_TYPES.includes(body.type) ? body.type : "text/csv";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: isFile || body === undefined ? body : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(15_000),
    });
  } catch {
    throw new ApiError(0, {}); // refused, reset, timed out: the caller says "reconnecting", there is no body
  }
  const answer = response.status === 204 ? null : await response.json().catch(() => undefined);
  if (response.ok) noteAsOf(path, response.headers);
  if (response.ok && answer !== undefined) return answer;
  const problem = { retry_after_s: response.headers.get("Retry-After"), ...answer };
  throw new ApiError(response.status, problem);
}

/** @param {string} code */
export const signIn = (code) => request("POST", "/api/v1/sign-in", { code });
/** @param {string} name @param {string} password */
export const signInByPassword = (name, password) => request("POST", "/api/v1/sign-in/password", { name, password });
/** @returns {Promise<{providers: {id: string, label: string}[]}>} */
export const fetchProviders = () => request("GET", "/api/v1/sign-in");
/** @param {string} provider @returns {Promise<{url: string}>} where to go */
export const beginSignIn = (provider) => request("POST", `/api/v1/sign-in/${encodeURIComponent(provider)}`);
/** @returns {Promise<any[]>} every error's texts */
export const fetchErrors = () => request("GET", "/api/v1/errors");
export const signOut = () => request("POST", "/api/v1/sign-out");
export const signOutEverywhere = () => request("POST", "/api/v1/sign-out/everywhere");
/** @returns {Promise<{name: string, has_password: boolean, is_free: boolean, least: number}>} */
export const fetchAccount = () => request("GET", "/api/v1/me/account");
/** @param {string} wanted @param {string} [present] */
export const setPassword = (wanted, present) => request("PUT", "/api/v1/me/password", { new: wanted, present });
/** @param {string} course @returns {Promise<{notebooks: any[]}>} */
export const fetchOwnProgress = (course) => request("GET", "/api/v1/me/progress", undefined, course);
/** @param {string} course */
export const fetchOwnCollection = (course) => request("GET", "/api/v1/me/collection", undefined, course);
/** @param {string} course @returns {Promise<{help: any}>} */
export const fetchOwnInbox = (course) => request("GET", "/api/v1/me/inbox?wait_s=0", undefined, course);
/** @param {string} course @param {number} version the notice's that was shown last */
export const withdraw = (course, version) => request("POST", "/api/v1/me/consent", { version, action: "withdraw" }, course);
/** @param {?number} before @returns {Promise<{entries: any[], next: ?number}>} */
export const fetchOwnAudit = (before) => request("GET", `/api/v1/me/audit?limit=20${before ? `&before=${before}` : ""}`);
export const fetchMe = () => request("GET", "/api/v1/me");

/** @param {string} courseId @param {?string} notebookId */
export function fetchLive(courseId, notebookId) {
  const query = notebookId ? `?notebook=${encodeURIComponent(notebookId)}` : "";
  return request("GET", `/api/v1/courses/${encodeURIComponent(courseId)}/live${query}`);
}

/**
 * Charts and shared errors of one team ("" all), of what was run in the last minutes (0 all). @param {string} courseId
 * @param {?string} notebookId @param {string} team @param {number} minutes
 */
export function fetchCharts(courseId, notebookId, team, minutes) {
  const query = new URLSearchParams({ ...(notebookId && { notebook: notebookId }), ...(team && { team }), ...(minutes && { minutes: String(minutes) }) });
  return request("GET", `/api/v1/courses/${encodeURIComponent(courseId)}/charts?${query}`);
}

/** @param {string} courseId @returns {Promise<import("./views/projector.js").Projection>} */
export const fetchProjector = (courseId) => request("GET", `/api/v1/courses/${encodeURIComponent(courseId)}/projector`);

/** @typedef {{user_id: string, sign: string, count: number, off_s: ?number}} Sign */
/** @param {string} courseId @param {number} startMs @param {string} [student] one student's alone @returns {Promise<{integrity: Sign[]}>} */
export const fetchIntegrity = (courseId, startMs, student = "") =>
  request("GET", ofPeople(courseId, `integrity?start=${new Date(startMs).toISOString()}&student=${student}`));

/** @param {string} courseId @param {string} notebookId @param {?string} cell where the class is from now on; null: nowhere */
export const markPosition = (courseId, notebookId, cell) => request("PUT", ofPeople(courseId, `notebooks/${encodeURIComponent(notebookId)}/position`), { cell });

/** @param {string} courseId */
export const startMeeting = (courseId) =>
  request("POST", `/api/v1/courses/${encodeURIComponent(courseId)}/meetings`, {});
/** @param {string} courseId */
export const endMeeting = (courseId) =>
  request("POST", `/api/v1/courses/${encodeURIComponent(courseId)}/meetings/end`, {});

/** Takes its end back, for some seconds after it. @param {string} courseId @param {string} meetingId */
export const reopenMeeting = (courseId, meetingId) =>
  request("POST", `/api/v1/courses/${encodeURIComponent(courseId)}/meetings/${meetingId}/reopen`, {});

export const fetchCourses = () => request("GET", "/api/v1/courses");
/** @param {{title: string, short_name: ?string, time_zone: string}} wanted */
export const createCourse = (wanted) => request("POST", "/api/v1/courses", wanted);
/** @param {string} id @param {{title: string}} wanted */
export const copyCourse = (id, wanted) => request("POST", ofPeople(id, "copies"), wanted);
/** @param {string} id @param {string} title */
export const renameCourse = (id, title) => request("PATCH", `/api/v1/courses/${encodeURIComponent(id)}`, { title });
/** @param {string} id @param {boolean} isArchived */
export const archiveCourse = (id, isArchived) =>
  request("PATCH", `/api/v1/courses/${encodeURIComponent(id)}`, { is_archived: isArchived });
/** @param {string} id */
export const fetchReadiness = (id) => request("GET", ofPeople(id, "readiness"));
/** @param {string} code of whom nothing else is known yet */
export const fetchNotice = (code) => request("GET", `/api/v1/join/notice?code=${encodeURIComponent(code)}`);
export const fetchHealth = () => request("GET", "/health");
/** @param {string} id @param {File} file @returns {Promise<{file_name: string, text: string}>} the prepared one */
export const prepareNotebook = (id, file) =>
  request("POST", ofPeople(id, `notebooks?name=${encodeURIComponent(file.name)}`), new Blob([file], { type: NOTEBOOK_TYPE }));

/** @param {string} courseId @returns {Promise<import("./report.js").Meeting[]>} the newest first */
export const fetchMeetings = async (courseId) => (await request("GET", `/api/v1/courses/${encodeURIComponent(courseId)}/meetings?limit=500`)).meetings;
/** @param {string} courseId @param {string} meetingId */
const ofReport = (courseId, meetingId) => `/api/v1/courses/${encodeURIComponent(courseId)}/meetings/${encodeURIComponent(meetingId)}/report`;
/** @param {string} courseId @param {string} meetingId @returns {Promise<import("./report.js").Report>} */
export const fetchReport = (courseId, meetingId) => request("GET", ofReport(courseId, meetingId));
/** Where its table is. @param {string} courseId @param {string} meetingId */
export const reportTable = (courseId, meetingId) => `${ofReport(courseId, meetingId)}.csv`;
/** @param {string} courseId @param {string} meetingId @param {{notebook: ?string, at: ?number, step_ms: number, span_ms: number}} wanted @returns {Promise<import("./player.js").Stretch>} */
export function fetchReplay(courseId, meetingId, wanted) {
  const query = new URLSearchParams(Object.entries(wanted).flatMap(([name, value]) => (value === null ? [] : [[name, String(value)]])));
  return request("GET", `${ofReport(courseId, meetingId).replace(/report$/, "replay")}?${query}`);
}
/** @param {string} courseId @param {string} meetingId @returns {Promise<{shares: any[]}>} */
export const fetchShares = (courseId, meetingId) => request("GET", `${ofReport(courseId, meetingId)}/shares`);
/** @param {string} courseId @param {string} meetingId @param {number} days @returns {Promise<{code: string}>} */
export const shareReport = (courseId, meetingId, days) => request("POST", `${ofReport(courseId, meetingId)}/shares`, { days });
/** @param {string} courseId @param {string} meetingId @param {string} shareId */
export const revokeShare = (courseId, meetingId, shareId) => request("DELETE", `${ofReport(courseId, meetingId)}/shares/${shareId}`);
/** @param {string} code @returns {Promise<import("./report.js").Report & {expires_at: string}>} */
export const fetchSharedReport = (code) => request("POST", "/api/v1/shared/report", { code });

/** @param {string} id @param {string} rest */
const ofPeople = (id, rest) => `/api/v1/courses/${encodeURIComponent(id)}/${rest}`;
/** @typedef {import("./views/map.js").RoomMap} RoomMap */
/** @param {string} id @returns {Promise<RoomMap>} */
export const fetchMap = (id) => request("GET", ofPeople(id, "map"));
/** @param {string} id @param {number} version @param {import("./views/places.js").Place[]} places @returns {Promise<RoomMap>} */
export const changeMap = (id, version, places) => request("PUT", ofPeople(id, "map"), { version, places });
/** @param {string} id @param {number} version @param {Blob} picture @returns {Promise<RoomMap>} */
export const changePicture = (id, version, picture) => request("PUT", ofPeople(id, `map/picture?version=${version}`), picture);
/** @param {string} id @param {number} version @returns {Promise<RoomMap>} */
export const removePicture = (id, version) => request("DELETE", ofPeople(id, `map/picture?version=${version}`));
/** @param {string} id @param {string} userId */
export const fetchStudent = (id, userId) => request("GET", ofPeople(id, `students/${encodeURIComponent(userId)}`));
/**
 * @param {string} id @param {string} userId @param {Record<string, string>} [which] `cursor`, or one cell's `notebook` and `cell`
 * @returns {Promise<{runs: any[], next: ?string}>}
 */
export const fetchRuns = (id, userId, which = {}) =>
  request("GET", ofPeople(id, `students/${encodeURIComponent(userId)}/runs?${new URLSearchParams(which)}`));
/** @param {string} id @param {string} notebookId @param {Record<string, string>} which `cell`, and which answers in which order */
export const fetchCell = (id, notebookId, which) => request("GET", ofPeople(id, `cells/${encodeURIComponent(notebookId)}?${new URLSearchParams(which)}`));
/** @param {string} id @param {string} fingerprint */
export const fetchError = (id, fingerprint) => request("GET", ofPeople(id, `errors/${encodeURIComponent(fingerprint)}`));
/** @param {string} id @param {string} fingerprint @param {import("./groups.js").Settled} changes */
export const settleGroup = (id, fingerprint, changes) => request("PATCH", ofPeople(id, `errors/${encodeURIComponent(fingerprint)}`), changes);
/** @param {string} id @param {string} userId @returns {Promise<{sessions: any[]}>} */
export const fetchSessions = (id, userId) => request("GET", ofPeople(id, `students/${encodeURIComponent(userId)}/sessions`));
/** @param {string} id @param {string} userId @returns {Promise<{interventions: any[]}>} */
export const fetchInterventions = (id, userId) => request("GET", ofPeople(id, `interventions?limit=20&student=${encodeURIComponent(userId)}`));
/** @param {string} id */
export const fetchPeople = (id) => request("GET", ofPeople(id, "people"));
/** @param {string} id @param {string} userId @param {any} change */
export const changeMember = (id, userId, change) => request("PATCH", ofPeople(id, `people/${userId}`), change);
/** @param {string} id @param {string[]} userIds */
export const approveMembers = (id, userIds) => request("POST", ofPeople(id, "people/approvals"), { user_ids: userIds });
/** @param {string} id @param {any} change */
export const changeEntry = (id, change) => request("PATCH", ofPeople(id, "entry"), change);
/** @param {string} id */
export const renewCode = (id) => request("POST", ofPeople(id, "join-code"), {});
/** @param {string} id @param {{role: string, teams: string[]}} wanted @returns {Promise<{code: string}>} */
export const inviteStaff = (id, wanted) => request("POST", ofPeople(id, "invitations"), wanted);
/** @param {string} id @param {string} invitationId */
export const revokeInvitation = (id, invitationId) => request("DELETE", ofPeople(id, `invitations/${invitationId}`));
/** @param {string} id @param {Blob} file @param {boolean} isDryRun @param {boolean} marksLeft */
export const sendRoster = (id, file, isDryRun, marksLeft) =>
  request("POST", ofPeople(id, `roster?dry_run=${isDryRun}&mark_left=${marksLeft}`), file);
/** @param {string} code @returns {Promise<{course_title: string, role: string}>} */
export const describeInvitation = (code) => request("POST", "/api/v1/invitations/describe", { code });
/** @param {{code: string, username?: string, display_name?: string}} answer */
export const acceptInvitation = (answer) => request("POST", "/api/v1/invitations/accept", answer);

/** @param {string} id */
export const fetchRules = (id) => request("GET", ofPeople(id, "rules"));
/** @param {string} id @param {any} rules */
export const changeRules = (id, rules) => request("PUT", ofPeople(id, "rules"), { rules });
/** @param {string} id @param {any} rules what they would have shown in the last class */
export const tryRules = (id, rules) => request("POST", ofPeople(id, "rules/preview"), { rules });
/** @param {string} id */
export const fetchCollection = (id) => request("GET", ofPeople(id, "collection"));
/** @param {string} id @param {string} level */
export const setCollectionLevel = (id, level) => request("PUT", ofPeople(id, "collection"), { level });

/** @param {string} courseId @returns {Promise<{ticket: string}>} */
export const fetchTicket = (courseId) =>
  request("POST", `/api/v1/courses/${encodeURIComponent(courseId)}/tickets`);

/** A random UUID; crypto.randomUUID exists on https pages only. */
export function makeId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}

const ofCourse = () => `/api/v1/courses/${encodeURIComponent(course.value.id)}`;

/** @param {string} alertId @param {string} action @param {any} body */
export const actOnAlert = (alertId, action, body) => request("POST", `${ofCourse()}/alerts/${alertId}/${action}`, body);
/** @param {any} body @returns {Promise<{batch_id: string, recipients: number, unknown: string[]}>} */
export const sendMessage = (body) => request("POST", `${ofCourse()}/messages`, body);
/** @param {string} studentId @returns {Promise<{threads: any[]}>} */
export const fetchThreads = (studentId) => request("GET", `${ofCourse()}/messages?student=${encodeURIComponent(studentId)}`);
/** @returns {Promise<{batches: any[]}>} */
export const fetchBatches = () => request("GET", `${ofCourse()}/messages`);
