// Votes on their way to the server: kept in the browser until it has them, sent again, never counted twice.

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 15000;

export class Sender {
  // `link` is the path of the page; `told(word)` hears of trouble: retrying, full, or "" when it is over.
  constructor(link, told) {
    this.link = link;
    this.told = told;
    this.key = `nava-vote:${link}`;
  }

  kept() {
    try { return JSON.parse(localStorage.getItem(this.key)); } catch { return null; }
  }

  keep(item) {
    try {
      if (item) localStorage.setItem(this.key, JSON.stringify(item));
      else localStorage.removeItem(this.key);
    } catch { /* without storage a vote lives as long as the page */ }
  }

  // Sends until the server has answered; returns its answer {status, code}.
  async send(path, body) {
    const item = { path, body: { id: newId(), ...body } };
    this.keep(item);
    return this.deliver(item);
  }

  // What an earlier page could not send.
  async flush() {
    const item = this.kept();
    return item && typeof item.path === "string" ? this.deliver(item) : null;
  }

  async deliver(item) {
    for (let wait = FIRST_WAIT_MS; ; wait = Math.min(wait * 1.6, LONGEST_WAIT_MS)) {
      const answer = await this.once(item);
      if (answer && answer.status < 500) {
        if (this.kept()?.body?.id === item.body.id) this.keep(null);
        this.told("");
        return answer;
      }
      this.told(answer?.code === "full" ? "full" : "retrying");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  async once(item) {
    try {
      const response = await fetch(`${this.link}/${item.path}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(item.body),
      });
      const values = await response.json().catch(() => ({}));
      return { status: response.status, code: values.code ?? "" };
    } catch {
      return null;
    }
  }
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(18));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");
}
