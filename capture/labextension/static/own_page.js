// The student's own page at the class's board, in a tab of its own: how far they are, and what is recorded of them.

import { Refusal } from "./desk.js";
import { guard } from "./guard.js";
import { texts } from "./words.js";

/** The link is good once: it is asked for when it is wanted. */
export async function openOwnPage(desk, forms) {
  const tab = window.open("about:blank", "_blank"); // while the click counts; later a browser would hold it back
  if (tab) tab.opener = null;
  try {
    const { link } = await desk.ask("POST", "own-page", {});
    if (tab) tab.location.replace(link);
    else forms.tell(texts.own_page_held, "info", [{ label: texts.show, callback: guard(() => window.open(link, "_blank", "noopener")) }]);
  } catch (error) {
    if (tab) tab.close();
    forms.tell((error instanceof Refusal && error.text) || texts.unreachable, "error");
  }
}
