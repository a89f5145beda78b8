// The words of the page, in the language of the reader.

const KEPT = "nava-language";

export async function loadTexts() {
  const own = document.getElementById("words"); // in the page itself, without a server
  const all = own ? JSON.parse(own.textContent) : null;
  const names = all ? Object.fromEntries(Object.entries(all).map(([code, words]) => [code, words.language])) : await (await fetch("/texts")).json();
  let kept = null;
  try { kept = localStorage.getItem(KEPT); } catch { /* storage may be forbidden */ }
  const wanted = [kept, ...navigator.languages].filter(Boolean);
  const fits = (tag) => [tag, tag.split("-")[0]].find((code) => Object.hasOwn(names, code));
  const code = wanted.map(fits).find(Boolean) ?? "en";
  const words = all ? all[code] : await (await fetch(`/texts/${code}`)).json();
  document.documentElement.lang = code;
  return { code, names, say: (key, values = {}) => fill(words[key] ?? key, values) };
}

export function keepLanguage(code) {
  try { localStorage.setItem(KEPT, code); } catch { /* then it is asked for again */ }
}

// Puts the words into every element with data-text, data-label or data-placeholder.
export function translate(root, say) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]"))
    element.setAttribute("aria-label", say(element.dataset.label));
  for (const element of root.querySelectorAll("[data-placeholder]"))
    element.placeholder = say(element.dataset.placeholder);
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}
