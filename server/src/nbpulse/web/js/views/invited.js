// @ts-check
/** Where an invitation's link leads: which course, as what, and who one is. */
import { ApiError, acceptInvitation } from "../api.js";
import { html, useState } from "../preact.js";
import { t } from "../i18n.js";
import { me } from "../store.js";
import { Page, Problem } from "./pages.js";

/** @param {{code: string, course: string, role: string, done: (accepted: any) => void}} props */
export function Invited({ code, course, role, done }) {
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const isKnown = Boolean(me.value.user_id);
  const submit = async (/** @type {any} */ event) => {
    event.preventDefault();
    const { username, name } = event.currentTarget.elements;
    setProblem(null);
    try {
      done(await acceptInvitation(isKnown ? { code } : { code, username: username.value, display_name: name.value }));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  return html`<${Page} name="invited" title=${t("invited.title")}>
    <p><bdi>${t("invited.to", { course, role: t(`role.${role}`) })}</bdi></p>
    ${problem && html`<${Problem} error=${problem} />`}
    <form class="write sign-in" onSubmit=${submit}>
      ${isKnown ? html`<p>${t("invited.as", { name: me.value.display_name })}</p>` : html`
        <label>${t("invited.username")}<input name="username" autocomplete="username" autocapitalize="none" spellcheck=${false} maxlength="100" required /></label>
        <label>${t("invited.name")}<input name="name" autocomplete="name" maxlength="200" required /></label>
        <p class="muted">${t("invited.have_account")}</p>`}
      <p class="write-end"><button class="primary" data-action="accept">${t("invited.accept")}</button></p>
    </form>
  <//>`;
}
