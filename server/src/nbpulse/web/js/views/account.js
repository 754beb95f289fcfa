// @ts-check
/** Who is signed in: the name at the top of every page, and behind it the password and the ways out. */
import { ApiError, fetchAccount, setPassword, signOut, signOutEverywhere } from "../api.js";
import { html, useEffect, useRef, useState } from "../preact.js";
import { t } from "../i18n.js";
import { isAccountOpen, me } from "../store.js";
import { Problem } from "./pages.js";

/** Nothing that was shown to one person stays on the page for the next. */
const leave = () => location.assign("/");

/** The button with the name. */
export function AccountButton() {
  const { user_id: id, display_name: name } = me.value;
  if (!id) return null;
  return html`<button class="account" data-action="account" aria-haspopup="dialog" title=${t("account.title")} onClick=${() => (isAccountOpen.value = true)}>
    <svg class="glyph" viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="8" r="4" /><path d="M4 21c0-9 16-9 16 0" /></svg>
    <bdi>${name}</bdi>
  </button>`;
}

/** Its dialog; it stands beside the pages, so that none of them takes it away in mid-typing. */
export function Account() {
  const dialog = useRef(/** @type {any} */ (null));
  useEffect(() => {
    if (isAccountOpen.value) dialog.current.showModal();
  }, [isAccountOpen.value]);
  return isAccountOpen.value && html`<dialog ref=${dialog} class="help" aria-labelledby="account-title" data-page="account" onClose=${() => (isAccountOpen.value = false)}>
    <h2 id="account-title"><bdi>${t("account.signed_in", { name: me.value.display_name })}</bdi></h2>
    <${Password} done=${() => dialog.current.close()} />
    <${WaysOut} />
    <form method="dialog"><button>${t("help.close")}</button></form>
  </dialog>`;
}

function WaysOut() {
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const go = (/** @type {() => Promise<any>} */ way) => async () => {
    try {
      await way();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status !== 401) return setProblem(error);
    }
    leave();
  };
  return html`<section class="ways">
    ${problem && html`<${Problem} error=${problem} />`}
    <p><button data-action="sign-out" onClick=${go(signOut)}>${t("account.sign_out")}</button>
      <span class="muted">${t("account.sign_out_explain")}</span></p>
    <p><button data-action="sign-out-everywhere" onClick=${go(signOutEverywhere)}>${t("account.everywhere")}</button>
      <span class="muted">${t("account.everywhere_explain")}</span></p>
  </section>`;
}

/** Sets or changes the password. @param {{done: () => void}} props */
export function Password({ done }) {
  const [account, setAccount] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const [isChanged, setChanged] = useState(false);
  const [isShown, setShown] = useState(false);
  const [isBusy, setBusy] = useState(false);
  useEffect(() => void fetchAccount().then(setAccount, setProblem), []);
  if (!account) return problem && html`<${Problem} error=${problem} />`;
  const submit = async (/** @type {any} */ event) => {
    event.preventDefault();
    if (isBusy) return;
    const form = event.currentTarget;
    setBusy(true);
    setProblem(null);
    try {
      await setPassword(form.elements.new.value, form.elements.present?.value);
      form.reset();
      setAccount({ ...account, has_password: true, is_free: false });
      setChanged(true);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    } finally {
      setBusy(false);
    }
  };
  const title = html`<h3>${t(account.has_password ? "account.change" : "account.set")}</h3>`;
  if (isChanged) {
    return html`<section>${title}<p role="status">${t("account.changed")}</p>
      <p class="write-end"><button class="primary" data-action="go-on" onClick=${done}>${t("account.go_on")}</button></p></section>`;
  }
  if (!account.is_free && !account.has_password) return html`<section>${title}<p class="muted">${t("account.by_link")}</p></section>`;
  const type = isShown ? "text" : "password";
  return html`<section>${title}<form class="write" onSubmit=${submit}>
    <input type="text" class="unseen" name="username" autocomplete="username" tabindex="-1" aria-hidden="true" readonly value=${account.name} />
    ${!account.is_free && html`<label>${t("account.present")}
      <input name="present" type=${type} autocomplete="current-password" required /></label>`}
    <label>${t("account.new")}
      <input name="new" type=${type} autocomplete="new-password" required minlength=${account.least} aria-describedby="password-rule" /></label>
    <p class="muted" id="password-rule">${t("account.rule", { least: account.least })}</p>
    <label class="check"><input type="checkbox" checked=${isShown} onChange=${(/** @type {any} */ e) => setShown(e.target.checked)} /> ${t("account.show")}</label>
    ${problem && html`<${Problem} error=${problem} />`}
    <p class="write-end"><button class="primary" data-action="set-password" disabled=${isBusy}>${t("account.save")}</button></p>
  </form></section>`;
}
