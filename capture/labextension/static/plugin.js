// The plugin: what it needs of the application, and how the parts are put together.

import { Desk, Messages, Status } from "./desk.js";
import { Forms } from "./forms.js";
import { guard, tellFaultsTo } from "./guard.js";
import { HAND, makeItem } from "./item.js";
import { observe } from "./observe.js";
import { Talk } from "./talk.js";
import { chooseLanguage, texts } from "./words.js";

const PACKAGES = ["notebook", "apputils", "services", "coreutils", "translation", "ui-components"];

function addStyle() {
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL("./nbpulse.css", import.meta.url).href });
  document.head.append(link);
}

/** By keyboard from everywhere: the application's command palette. */
function addCommands(app, palette, talk) {
  app.commands.addCommand("nbpulse:talk", { label: texts.talk_title, execute: guard(() => talk.open()) });
  app.commands.addCommand("nbpulse:own-page", { label: texts.own_page, execute: guard(() => talk.openOwnPage()) });
  if (!palette) return;
  for (const command of ["nbpulse:talk", "nbpulse:own-page"]) palette.addItem({ command, category: "nbpulse" });
}

async function begin(name, shared, app, tracker, translator, palette) {
  const { notebook, apputils, services, coreutils, uiComponents, widgets } = shared;
  chooseLanguage(translator && translator.languageCode);
  const desk = new Desk(name, services, coreutils);
  tellFaultsTo((text) => desk.ask("POST", "faults", { text }));
  Object.assign(texts, await desk.ask("GET", "texts"));
  addStyle();
  observe(app, desk, tracker, notebook.NotebookActions);
  const status = new Status(desk);
  const messages = new Messages(desk, status);
  const forms = new Forms(apputils, widgets, desk);
  const icon = new uiComponents.LabIcon({ name: "nbpulse:hand", svgstr: HAND });
  const talk = new Talk({ app, desk, apputils, status, messages, forms, tracker, widgets, icon });
  const parts = { status, forms, talk, widgets };
  app.docRegistry.addWidgetExtension("Notebook", {
    createNew: guard((panel) => {
      const item = makeItem(panel, parts);
      // Left of the gap: where the toolbar is too narrow, what stands right of it goes into a menu first.
      if (!panel.toolbar.insertBefore("spacer", "nbpulse", item)) panel.toolbar.addItem("nbpulse", item);
      return item;
    }),
  });
  if (coreutils.PageConfig.getOption("notebookPage") === "tree") {
    const item = makeItem(null, parts);
    item.id = "nbpulse-top";
    app.shell.add(item, "top", { rank: 900 });
  }
  addCommands(app, palette, talk);
  guard(() => status.watch())();
}

export async function makePlugin(name, load) {
  const [notebook, apputils, services, coreutils, translation, uiComponents] = await Promise.all(
    PACKAGES.map((one) => load(`@jupyterlab/${one}`)));
  const shared = { notebook, apputils, services, coreutils, uiComponents, widgets: await load("@lumino/widgets") };
  return {
    id: `${name}:plugin`,
    description: "Tells the class that the student is there; the raised hand; the talk with the class",
    autoStart: true,
    requires: [notebook.INotebookTracker],
    optional: [translation.ITranslator, apputils.ICommandPalette],
    activate: guard((...given) => begin(name, shared, ...given)),
  };
}
