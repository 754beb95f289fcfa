// The door of nbpulse-capture's front end, written by hand: no build step, no dependency. The rooms behind it are plain ES
// modules in this folder (docs/decisions/0016-front-end-modules.md).
//
// JupyterLab 4 and Notebook 7 load it as a federated module: a container {init, get} under its name in
// window._JUPYTERLAB (https://jupyterlab.readthedocs.io/en/stable/extension/extension_dev.html, "Prebuilt Extensions").
(() => {
  "use strict";

  const NAME = "nbpulse-capture";
  const rooms = document.currentScript.src; // known only while this script itself runs
  let scope = null;

  /** A package of the application, from the modules it shares. */
  async function load(name) {
    const versions = scope[name];
    const version = versions && Object.keys(versions)[0];
    if (!version) throw new Error(`${NAME}: ${name} is not shared by this application`);
    return (await versions[version].get())();
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = {
    init: (shared) => {
      scope = shared;
    },
    get: async () => {
      try {
        const { makePlugin } = await import(new URL("./plugin.js", rooms).href);
        const plugin = await makePlugin(NAME, load);
        return () => ({ __esModule: true, default: plugin });
      } catch (error) {
        console.debug(`${NAME}:`, error); // an application that we do not know works on without us
        return () => ({ __esModule: true, default: [] });
      }
    },
  };
})();
