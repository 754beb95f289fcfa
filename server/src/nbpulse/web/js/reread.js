// @ts-check
/** What a page reads when it is opened, and again while somebody looks at it. */
import { ApiError } from "./api.js";
import { useEffect, useState } from "./preact.js";

/**
 * Calls `read` now, each `everyMs` while the page is in sight, and anew where one of `causes` has changed. What was read
 * before stays. @param {() => Promise<any>} read @param {number} everyMs @param {any[]} causes
 * @returns {{problem: ?ApiError, reread: () => Promise<void>}} what went wrong the last time, and reading at once
 */
export function useReread(read, everyMs, causes) {
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const reread = async () => {
    try {
      await read();
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  useEffect(() => {
    void reread();
    const timer = setInterval(() => document.hidden || reread(), everyMs);
    return () => clearInterval(timer);
  }, causes);
  return { problem, reread };
}
