// @ts-check
/** The page of signing in: name and password, other systems that vouch for people, and what to do without an account. */
import { ApiError, beginSignIn, fetchProviders, signInByPassword } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { t } from "../i18n.js";
import { Command, Page, Problem } from "./pages.js";
import { Password } from "./account.js";

/** Where to go on to after another system has sent the browser back to the board's first page. */
const RETURN_KEY = "nbpulse.return";

/** The way that was left for another system; once. @returns {?string} */
export function takeReturnPath() {
  const path = sessionStorage.getItem(RETURN_KEY);
  sessionStorage.removeItem(RETURN_KEY);
  return path;
}

/** @param {{error?: ?ApiError}} props `error`: why the way that was tried before did not work */
export function SignIn({ error: earlier }) {
  const [problem, setProblem] = useState(earlier ?? null);
  const [isBusy, setBusy] = useState(false);
  const submit = async (/** @type {any} */ event) => {
    event.preventDefault();
    if (isBusy) return;
    const { name, password } = event.currentTarget.elements;
    setBusy(true);
    setProblem(null);
    try {
      await signInByPassword(name.value, password.value);
      location.reload(); // nothing of whoever was here before stays
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
      setBusy(false);
      password.select();
    }
  };
  const [providers, setProviders] = useState(/** @type {{id: string, label: string}[]} */ ([]));
  useEffect(() => void fetchProviders().then((found) => setProviders(found.providers), setProblem), []);
  const go = (/** @type {string} */ provider) => async () => {
    setProblem(null);
    try {
      const { url } = await beginSignIn(provider);
      sessionStorage.setItem(RETURN_KEY, location.pathname);
      location.assign(url);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  return html`<${Page} name="sign-in" title=${t("sign_in.title")}>
    ${problem && html`<${Problem} error=${problem} />`}
    <form class="write sign-in" onSubmit=${submit}>
      <label>${t("sign_in.name")}<input name="name" type="text" autocomplete="username" autocapitalize="none" spellcheck=${false} maxlength="200" required autofocus /></label>
      <label>${t("sign_in.password")}<input name="password" type="password" autocomplete="current-password" maxlength="1024" required /></label>
      <p class="write-end"><button class="primary" data-action="sign-in" disabled=${isBusy}>${t("sign_in.enter")}</button></p>
    </form>
    ${providers.length > 0 && html`<section class="providers" aria-label=${t("sign_in.elsewhere")}>
      ${providers.map(({ id, label }) => html`<button key=${id} data-provider=${id} onClick=${go(id)}>${t("sign_in.with", { label })}</button>`)}
    </section>`}
    <details>
      <summary>${t("sign_in.no_account")}</summary>
      <p>${t("sign_in.ask")}</p>
      <p>${t("sign_in.open_link")}</p>
      <p>${t("sign_in.new_link")}</p>
      <${Command} text="nbpulse link" />
    </details>
    <p class="muted">${t("sign_in.student")}</p>
  <//>`;
}

/** Where the link of a new account, or of a forgotten password, leads. @param {{done: () => void}} props */
export function FirstPassword({ done }) {
  return html`<${Page} name="first-password" title=${t("account.welcome")}>
    <${Password} done=${done} />
    <button data-action="later" onClick=${done}>${t("account.later")}</button>
  <//>`;
}
