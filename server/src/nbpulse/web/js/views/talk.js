// @ts-check
/** Writing to students: a thread with one, or an announcement to all who share an error or to the class. */
import { html, useEffect, useRef, useState } from "../preact.js";
import { ApiError, fetchThreads, makeId, sendMessage } from "../api.js";
import { say } from "../actions.js";
import { formatClock, t } from "../i18n.js";
import { announced, isNamed, labelOf, rows, talk } from "../store.js";

const LOOK_EVERY_MS = 3_000;
const TEXT_MOST = 1_000;

/** The dialog, open while `talk` names somebody. */
export function Talk() {
  const dialog = useRef(/** @type {any} */ (null));
  const to = talk.value;
  useEffect(() => {
    if (to) dialog.current.showModal();
    else dialog.current.close();
  }, [to]);
  return html`<dialog ref=${dialog} class="help talk" aria-labelledby="talk-title" onClose=${() => (talk.value = null)}>
    ${to && (to.student ? html`<${Thread} key=${to.student} studentId=${to.student} />` : html`<${Announcement} key=${to.key} to=${to} />`)}
  </dialog>`;
}

/** @param {{studentId: string}} props */
function Thread({ studentId }) {
  const row = rows.value.find((one) => one?.id === studentId);
  const [threads, setThreads] = useState(/** @type {?any[]} */ (null));
  const [problem, setProblem] = useState("");
  const look = () =>
    fetchThreads(studentId).then((answer) => setThreads(answer.threads), (error) => setProblem(error.title || error.message));
  useEffect(() => {
    look();
    const timer = setInterval(look, LOOK_EVERY_MS);
    return () => clearInterval(timer);
  }, [studentId, row?.mail]);
  if (!row) return null;
  const messages = (threads ?? []).flatMap((one) => one.messages).sort((a, b) => a.at - b.at);
  const thread = threads?.[0]?.thread_id ?? null;
  return html`<h2 id="talk-title">${t("talk.with", { name: labelOf(row) })}</h2>
    <ol class="thread" tabindex="0" aria-label=${t("talk.thread")}>
      ${threads && messages.length === 0 && html`<li class="muted">${t("talk.nothing")}</li>`}
      ${messages.map((one) => html`<${Message} key=${one.id} message=${one} student=${labelOf(row)} />`)}
    </ol>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    <${Form} texts=${[""]} labels=${[t("talk.text")]} button=${t("talk.send")}
      send=${async (/** @type {string} */ id, /** @type {string[]} */ [text]) => {
        await sendMessage({ id, to: { user_ids: [studentId] }, text, thread_id: thread });
        await look();
      }} />`;
}

/** @param {{message: any, student: string}} props */
function Message({ message, student }) {
  const text = typeof message.text === "string" ? message.text : `${message.text.ja}\n${message.text.en}`;
  return html`<li class="message" data-message=${message.id} data-from=${message.is_from_staff ? "staff" : "student"}>
    <span class="muted"><bdi>${message.is_from_staff ? message.from : student}</bdi> ${formatClock(message.at).slice(0, 5)}
      ${message.is_from_staff && html` · ${t(`state.${message.state}`)}`}</span>
    <p><bdi>${text}</bdi></p>
    ${message.offer && html`<pre tabindex="0"><code>${message.offer.source}</code></pre>`}
  </li>`;
}

/** @param {{to: any}} props `to`: what `talk` holds, with the drafts */
function Announcement({ to }) {
  const title = to.error ? t("talk.to_error", { n: to.error.n, label: to.error.label }) : to.title ?? t("talk.to_all");
  return html`<h2 id="talk-title">${title}</h2>
    <p class="muted">${t("talk.both")}</p>
    <${Form} texts=${to.drafts} labels=${[t("language.ja"), t("language.en")]} button=${t("talk.announce")}
      send=${async (/** @type {string} */ id, /** @type {string[]} */ [ja, en]) => {
        const text = ja.trim() && en.trim() ? { ja, en } : ja.trim() || en.trim();
        const sent = await sendMessage({ id, to: to.error ? { error_fingerprint: to.error.fp } : to.to ?? { all: true }, text });
        if (to.error) announced.value = { ...announced.peek(), [to.error.fp]: sent.batch_id };
        say(t("talk.sent", { n: sent.recipients }));
        talk.value = null;
      }} />`;
}

/**
 * Texts to edit and to send; a text that could not be sent stays, and goes under the same id when tried again.
 * @param {{texts: string[], labels: string[], button: string, send: (id: string, texts: string[]) => Promise<void>}} props
 */
function Form({ texts: drafts, labels, button, send }) {
  const [texts, setTexts] = useState(drafts);
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const [isBusy, setBusy] = useState(false);
  const id = useRef(makeId());
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (isBusy || !texts.some((text) => text.trim())) return;
    setBusy(true);
    setProblem(null);
    try {
      await send(id.current, texts);
      id.current = makeId();
      setTexts(drafts.map(() => ""));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    } finally {
      setBusy(false);
    }
  };
  return html`<form class="write" onSubmit=${submit}>
    ${texts.map((text, place) => html`<label key=${place}>${labels[place]}
      <textarea rows="3" maxlength=${TEXT_MOST} value=${text} autofocus=${place === 0}
        onInput=${(/** @type {any} */ e) => setTexts(texts.map((one, other) => (other === place ? e.target.value : one)))}></textarea>
    </label>`)}
    ${problem && html`<p class="problem" role="alert">${problem.title || t("problem.unreachable")} ${problem.hint}</p>`}
    <p class="write-end">
      <button type="button" data-act="close" onClick=${() => (talk.value = null)}>${t("help.close")}</button>
      <button class="primary" data-act="send" disabled=${isBusy}>${button}</button>
    </p>
  </form>`;
}
