// @ts-check
/** A page's line to its class: what comes over it is in the store. */
import { fetchMe } from "../api.js";
import { useEffect, useState } from "../preact.js";
import { Connection } from "../connection.js";
import { classroom, clockOffsetMs, link, me } from "../store.js";

/**
 * Keeps the store at the class's newest while the page is shown.
 * @param {string} courseId @param {?string} [notebookId] which notebook's class; by default the one in use
 * @returns {{connection: ?Connection, refusal: ?import("../api.js").ApiError}} `refusal`: why there is no class to see
 */
export function useClass(courseId, notebookId = null) {
  const [refusal, setRefusal] = useState(/** @type {?import("../api.js").ApiError} */ (null));
  const [connection, setConnection] = useState(/** @type {?Connection} */ (null));
  useEffect(() => {
    /** @type {Connection} */
    const line = new Connection(courseId, {
      onState: (state) => {
        clockOffsetMs.value = line.clockOffsetMs;
        classroom.value = state;
      },
      onLink: (state) => (link.value = state),
      onRefused: setRefusal,
    });
    line.notebookId = notebookId;
    setConnection(line);
    line.start();
    // Without it a claim of one's own bears no name until the server's word has come.
    fetchMe().then((who) => (me.value = who), (error) => console.warn(error));
    return () => line.stop();
  }, [courseId, notebookId]);
  return { connection, refusal };
}
