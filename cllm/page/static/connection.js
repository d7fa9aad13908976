// Requests to the server, with the key once it needs one. Paths are relative to the page.

import { askForKey } from "./key_dialog.js";

const STORED = "cllm-key";

export const base = new URL(".", document.baseURI);

let asking = null;

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// As fetch(); asks for a key on 401 and sends the request again.
export async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(STORED);
    const headers = new Headers(options.headers);
    headers.set("Accept", headers.get("Accept") ?? "application/json, text/event-stream");
    if (options.body !== undefined) headers.set("Content-Type", "application/json");
    if (key) headers.set("Authorization", `Bearer ${key}`);
    const response = await fetch(new URL(path.replace(/^\/+/, ""), base), { ...options, headers });
    if (response.status !== 401) return response;
    if (sessionStorage.getItem(STORED) !== key) continue;
    asking ??= askForKey(Boolean(key)).finally(() => (asking = null));
    const given = await asking;
    if (given === null) throw new ServerError(401, await messageOf(response));
    sessionStorage.setItem(STORED, given);
  }
}

export function forgetKey() {
  sessionStorage.removeItem(STORED);
}

// The JSON that the server answers; throws ServerError. body: sent as JSON with POST.
export async function json(path, body, options = {}) {
  const more = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const response = await request(path, { ...more, ...options });
  if (!response.ok) throw new ServerError(response.status, await messageOf(response));
  return response.json();
}

export async function messageOf(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return typeof error === "string" ? error : error.message;
  } catch {
    return text.slice(0, 500) || `${response.status} ${response.statusText}`;
  }
}
