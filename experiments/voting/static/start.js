import { loadTexts, translate } from "./texts.js";

const { say } = await loadTexts();
const state = location.pathname.startsWith("/r/") ? await fetch(`${location.pathname}/state`) : null;
if (state?.status === 410)
  for (const element of document.querySelectorAll("[data-closed]")) element.dataset.text = element.dataset.closed;
translate(document, say);
document.title = document.querySelector("h1").textContent;
