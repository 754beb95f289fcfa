// The front end's promise: whatever breaks in here, the notebook does not notice. Everything that the application or the
// browser calls goes through guard(); what was caught is told to the server extension, whose `status` counts it.

const REPORTS_MAX = 20;
let report = null;
let reportCount = 0;

/** Where faults are told from now on: an asynchronous function of their words. */
export function tellFaultsTo(send) {
  report = send;
}

export function noteFault(error) {
  console.debug("nbpulse-capture:", error);
  reportCount += 1;
  if (report === null || reportCount > REPORTS_MAX) return;
  report(String((error && error.stack) || error)).catch((away) => console.debug("nbpulse-capture:", away));
}

/** The same action, from which no exception and no rejection comes out. */
export function guard(action) {
  return (...given) => {
    try {
      const result = action(...given);
      return result instanceof Promise ? result.catch(noteFault) : result;
    } catch (error) {
      noteFault(error);
      return undefined;
    }
  };
}
