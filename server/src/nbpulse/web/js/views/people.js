// @ts-check
/** The people of one course: who waits, how students come in, staff and students, and the roster. */
import { ApiError, approveMembers, changeEntry, changeMember, fetchPeople, inviteStaff, renewCode, revokeInvitation } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { formatDay, t } from "../i18n.js";
import { Command, CoursePage, Problem, Refused } from "./pages.js";
import { Roster } from "./roster.js";

/** @typedef {{user_id: string, name: string, kana: ?string, number: ?string, role: string, team: ?string, teams: string[], seat: ?string, joined_at: ?string, left_at: ?string, granted_by: ?string, same_as: ?string}} Member */
/** @typedef {(work: () => Promise<any>) => Promise<boolean>} Run does it, shows what went wrong, and reads all anew */

const splitTeams = (/** @type {string} */ text) => text.split(/[,、]/).map((one) => one.trim()).filter(Boolean);
const joinTeams = (/** @type {string[]} */ teams) => teams.join(", ");

/** @param {{courseId: string, title: string}} props */
export function People({ courseId, title }) {
  const [people, setPeople] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const read = async () => setPeople(await fetchPeople(courseId));
  /** @type {Run} */
  const run = async (work) => {
    try {
      setProblem(null);
      await work();
      await read();
      return true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
      return false;
    }
  };
  useEffect(() => void run(async () => {}), [courseId]);
  const page = { name: "people", title: t("people.title"), courseId, course: title };
  if (!people) return problem ? html`<${Refused} error=${problem} />` : html`<${CoursePage} ...${page} />`;
  const { entry, invitations, may_change: mayChange } = people;
  const of = (/** @type {string[]} */ ...roles) => people.members.filter((/** @type {Member} */ one) => roles.includes(one.role));
  const parts = { courseId, run, mayChange };
  return html`<${CoursePage} ...${page}>
    ${problem && html`<${Problem} error=${problem} />`}
    <${Newcomers} ...${parts} members=${of("waiting")} />
    <${Entry} ...${parts} entry=${entry} />
    <${Staff} ...${parts} members=${of("instructor", "assistant", "analyst")} invitations=${invitations} me=${people.user_id} />
    <${Students} ...${parts} members=${of("student")} former=${of("former")} />
    ${mayChange && html`<${Roster} courseId=${courseId} done=${() => run(async () => {})} />`}
  <//>`;
}

/** @param {{courseId: string, run: Run, mayChange: boolean, members: Member[]}} props */
function Newcomers({ courseId, run, mayChange, members }) {
  if (members.length === 0) return null;
  const admit = (/** @type {Member[]} */ who) => run(() => approveMembers(courseId, who.map((one) => one.user_id)));
  return html`<section class="card" data-part="waiting" aria-labelledby="waiting-title">
    <h2 id="waiting-title">${t("people.waiting", { n: members.length })}</h2>
    <p class="muted">${t("people.waiting_explain")}</p>
    <ul class="people">${members.map((one) => html`<li key=${one.user_id}><${Name} member=${one} />
      ${mayChange && html`<span class="ends">
        <button class="primary" data-action="admit" onClick=${() => admit([one])}>${t("people.admit")}<span class="unseen"> ${one.name}</span></button>
        <button data-action="refuse" onClick=${() => run(() => changeMember(courseId, one.user_id, { role: "former" }))}>${t("people.refuse")}<span class="unseen"> ${one.name}</span></button>
      </span>`}</li>`)}</ul>
    ${mayChange && members.length > 1 && html`<button data-action="admit-all" onClick=${() => admit(members)}>${t("people.admit_all")}</button>`}
  </section>`;
}

/** @param {{courseId: string, run: Run, mayChange: boolean, entry: any}} props */
function Entry({ courseId, run, mayChange, entry }) {
  const [isAsking, setAsking] = useState(false);
  const ends = entry.join_code_expires_at && new Date(entry.join_code_expires_at);
  const state = entry.is_join_closed ? "closed" : ends && ends < new Date() ? "expired" : "open";
  const words = state === "open" && ends ? t("people.open_until", { day: formatDay(ends) }) : t(`people.code_${state}`);
  const change = (/** @type {any} */ what) => run(() => changeEntry(courseId, what));
  const renew = async () => {
    setAsking(false);
    await run(() => renewCode(courseId));
  };
  /** @param {string} name */
  const check = (name) => html`<label class="check"><input type="checkbox" name=${name} checked=${entry[name]} disabled=${!mayChange}
    onChange=${(/** @type {any} */ e) => change({ [name]: e.target.checked })} /> ${t(`people.${name}`)}</label>`;
  return html`<section class="card" data-part="entry" aria-labelledby="entry-title">
    <h2 id="entry-title">${t("people.entry")}</h2>
    <p class="ends"><b class="code" data-join-code>${entry.join_code}</b> <span data-state=${state} role="status">${words}</span></p>
    ${mayChange && html`<p class="ends">
      <button data-action="toggle-code" onClick=${() => change({ is_join_closed: !entry.is_join_closed })}>${t(entry.is_join_closed ? "people.open_code" : "people.close_code")}</button>
      ${isAsking
        ? html`<button class="primary" data-action="renew-now" onClick=${renew}>${t("people.renew_now")}</button>
          <button data-action="keep-code" onClick=${() => setAsking(false)}>${t("people.keep_code")}</button>`
        : html`<button data-action="renew-code" onClick=${() => setAsking(true)}>${t("people.renew_code")}</button>`}
    </p>`}
    ${check("needs_approval")}${check("shows_all_teams")}
  </section>`;
}

/** @param {{courseId: string, run: Run, mayChange: boolean, members: Member[], invitations: any[], me: string}} props */
function Staff({ courseId, run, mayChange, members, invitations, me }) {
  const change = (/** @type {Member} */ one, /** @type {any} */ what) => run(() => changeMember(courseId, one.user_id, what));
  return html`<section class="card" data-part="staff" aria-labelledby="staff-title">
    <h2 id="staff-title">${t("people.staff")}</h2>
    <ul class="people">${members.map((one) => html`<li key=${one.user_id} data-member=${one.user_id}>
      <${Name} member=${one} isMe=${one.user_id === me} />
      <span class="fields">
        <select aria-label=${t("people.role_of", { name: one.name })} value=${one.role} disabled=${!mayChange || Boolean(one.granted_by)}
          onChange=${(/** @type {any} */ e) => change(one, { role: e.target.value }).then((isDone) => isDone || (e.target.value = one.role))}>
          ${["instructor", "assistant", "analyst"].map((role) => html`<option key=${role} value=${role} selected=${role === one.role}>${t(`role.${role}`)}</option>`)}
        </select>
        ${one.role === "assistant" && html`<${Field} label=${t("people.teams_of", { name: one.name })} hint=${t("people.teams")} value=${joinTeams(one.teams)}
          isFixed=${!mayChange} save=${(/** @type {string} */ text) => change(one, { teams: splitTeams(text) })} />`}
        ${mayChange && !one.granted_by && html`<${Removal} member=${one} remove=${() => change(one, { role: "former" })} />`}
      </span></li>`)}</ul>
    ${mayChange && html`<${Invite} courseId=${courseId} run=${run} invitations=${invitations} />`}
  </section>`;
}

/** @param {{courseId: string, run: Run, invitations: any[]}} props */
function Invite({ courseId, run, invitations }) {
  const [link, setLink] = useState("");
  const submit = (/** @type {any} */ event) => {
    event.preventDefault();
    const { role, teams } = event.currentTarget.elements;
    const wanted = { role: role.value, teams: splitTeams(teams.value) };
    void run(async () => setLink(`${location.origin}/#invite=${(await inviteStaff(courseId, wanted)).code}`));
  };
  return html`<h3>${t("people.invite")}</h3>
    <form class="fields" onSubmit=${submit}>
      <label>${t("people.role")} <select name="role">${["assistant", "instructor", "analyst"].map((role) => html`<option key=${role} value=${role}>${t(`role.${role}`)}</option>`)}</select></label>
      <label>${t("people.teams")} <input name="teams" maxlength="200" placeholder=${t("people.teams_example")} /></label>
      <button class="primary" data-action="invite">${t("people.make_link")}</button>
    </form>
    ${link && html`<div role="status"><p>${t("people.link_once")}</p><${Command} text=${link} /></div>`}
    ${invitations.length > 0 && html`<ul class="people" data-invitations>${invitations.map((one) => html`<li key=${one.id}>
      <span>${t("people.invited", { role: t(`role.${one.role}`), day: formatDay(new Date(one.expires_at)) })} ${joinTeams(one.teams)}</span>
      <button data-action="revoke-invitation" onClick=${() => run(() => revokeInvitation(courseId, one.id))}>${t("people.take_back")}</button>
    </li>`)}</ul>`}`;
}

/** @param {{courseId: string, run: Run, mayChange: boolean, members: Member[], former: Member[]}} props */
function Students({ courseId, run, mayChange, members, former }) {
  const [sought, setSought] = useState("");
  const change = (/** @type {Member} */ one, /** @type {any} */ what) => run(() => changeMember(courseId, one.user_id, what));
  const fits = (/** @type {Member} */ one) =>
    [one.name, one.kana, one.number, one.team, one.seat].some((text) => text?.toLowerCase().includes(sought.trim().toLowerCase()));
  return html`<section class="card" data-part="students" aria-labelledby="students-title">
    <h2 id="students-title">${t("people.students", { n: members.length })}</h2>
    <input type="search" class="search" aria-label=${t("people.search")} placeholder=${t("people.search")} value=${sought}
      onInput=${(/** @type {any} */ e) => setSought(e.target.value)} />
    ${members.length === 0 && html`<p class="muted">${t("people.no_students")}</p>`}
    <ul class="people">${members.filter(fits).map((one) => html`<li key=${one.user_id} data-member=${one.user_id}><${Name} member=${one} />
      <span class="fields">
        <${Field} label=${t("people.team_of", { name: one.name })} hint=${t("people.team")} value=${one.team ?? ""} isFixed=${!mayChange}
          save=${(/** @type {string} */ text) => change(one, { team: text.trim() || null })} />
        <${Field} label=${t("people.seat_of", { name: one.name })} hint=${t("people.seat")} value=${one.seat ?? ""} isFixed=${!mayChange}
          save=${(/** @type {string} */ text) => change(one, { seat: text.trim() || null })} />
        ${mayChange && !one.granted_by && html`<${Removal} member=${one} remove=${() => change(one, { role: "former" })} />`}
      </span></li>`)}</ul>
    ${former.length > 0 && html`<details><summary>${t("people.former", { n: former.length })}</summary>
      <p class="muted">${t("people.former_explain")}</p>
      <ul class="people">${former.map((one) => html`<li key=${one.user_id}><${Name} member=${one} />
        ${mayChange && html`<button data-action="bring-back" onClick=${() => change(one, { role: "student" })}>${t("people.bring_back")}<span class="unseen"> ${one.name}</span></button>`}
      </li>`)}</ul></details>`}
  </section>`;
}

/** @param {{member: Member, isMe?: boolean}} props */
function Name({ member, isMe = false }) {
  const notes = [
    isMe && t("people.me"),
    member.role === "student" && !member.joined_at && t("people.not_come"),
    member.same_as && t("people.same"),
    member.granted_by && t("people.by_hub"),
    member.left_at && t("people.left_on", { day: formatDay(new Date(member.left_at)) }),
  ].filter(Boolean);
  return html`<span class="person"><bdi>${member.name}</bdi> <span class="muted">${member.number} ${member.kana}</span>
    ${notes.map((one) => html` <span class="note-chip" key=${one}>${one}</span>`)}</span>`;
}

/** A short text, saved when one leaves it or presses Enter; Escape takes it back.
 * @param {{label: string, hint: string, value: string, isFixed: boolean, save: (text: string) => Promise<boolean>}} props */
function Field({ label, hint, value, isFixed, save }) {
  const finish = async (/** @type {any} */ event) => {
    const input = event.currentTarget;
    if (input.value !== value && !(await save(input.value))) input.value = value;
  };
  return html`<input class="field" aria-label=${label} placeholder=${hint} value=${value} maxlength="200" readonly=${isFixed} onBlur=${finish}
    onKeyDown=${(/** @type {any} */ e) => {
      if (e.key === "Escape") e.currentTarget.value = value;
      if (e.key === "Enter" || e.key === "Escape") e.currentTarget.blur();
    }} />`;
}

/** Asks once more. @param {{member: Member, remove: () => void}} props */
function Removal({ member, remove }) {
  const [isAsking, setAsking] = useState(false);
  if (!isAsking) return html`<button data-action="remove" onClick=${() => setAsking(true)}>${t("people.remove")}<span class="unseen"> ${member.name}</span></button>`;
  return html`<button class="primary" data-action="remove-now" onClick=${remove}>${t("people.remove_now")}<span class="unseen"> ${member.name}</span></button>
    <button data-action="keep" onClick=${() => setAsking(false)}>${t("people.keep")}<span class="unseen"> ${member.name}</span></button>`;
}
