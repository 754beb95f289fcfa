// The texts of the front end, in the application's language, and how they come into the page: as text, never as HTML.

export const texts = {}; // by name; they stand in capture's one catalogue
export let language = "en";

/** `code` is the application's: "ja-JP", "en", ... */
export function chooseLanguage(code) {
  language = String(code || "en").toLowerCase().startsWith("ja") ? "ja" : "en";
}

export const fill = (text, facts) => text.replace(/\{(\w+)\}/g, (_, name) => String(facts[name] ?? ""));

/** A text of the class: one for all, or one for each language. */
export const choose = (text) => (text && typeof text === "object" ? text[language] || text.en : text) || "";

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}
