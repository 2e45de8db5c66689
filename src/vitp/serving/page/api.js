// Requests to the server. Whatever goes wrong is thrown as an Error whose message is one sentence.

import { byId } from "./dom.js";

const KEY = "vitp-token";
let token = sessionStorage.getItem(KEY) ?? "";
let asking = null;

/** Ask for the token; resolves to whether one was given. Requests that wait share the question. */
export function askForToken(refused) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token"), field = byId("token-value");
    byId("token-wrong").hidden = !refused;
    byId("token-open").hidden = false;
    field.value = "";
    const done = (given) => {
      if (given) {
        token = field.value;
        sessionStorage.setItem(KEY, token);
      }
      byId("token-form").onsubmit = dialog.onclose = byId("token-cancel").onclick = null;
      dialog.close();
      asking = null;
      resolve(given);
    };
    byId("token-form").onsubmit = (event) => { event.preventDefault(); done(true); };
    byId("token-cancel").onclick = () => done(false);
    dialog.onclose = () => done(false);
    dialog.showModal();
    field.focus();
  });
  return asking;
}

async function sentence(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    if (typeof error === "string" && error) return error;
  } catch { /* no JSON: a proxy in between, for instance */ }
  return `The server answered ${response.status} ${response.statusText}`.trim() + ".";
}

/** Return the response of a request that succeeded; a form's values may be text, numbers or files. */
export async function request(address, form = null, signal = undefined) {
  const body = form && new FormData();
  for (const [name, value] of Object.entries(form ?? {})) {
    if (value !== undefined && value !== null && value !== "") body.append(name, value);
  }
  for (;;) {
    const sent = token;
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let response;
    try {
      response = await fetch(address, { method: body ? "POST" : "GET", body, headers, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server can't be reached; it may have been stopped.");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw Object.assign(new Error(await sentence(response)), { status: response.status });
    if (sent === token && !(await askForToken(Boolean(sent)))) throw new Error(await sentence(response));
  }
}

export const getJson = async (address, form, signal) => (await request(address, form, signal)).json();
export const getBlob = async (address, form, signal) => (await request(address, form, signal)).blob();

/** Yield the data of each server-sent event as it comes. */
export async function* events(address, form, signal) {
  const reader = (await request(address, form, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The connection to the server broke off.");
    }
    rest += part.value ?? "";
    const whole = rest.split(/\r?\n\r?\n/);
    rest = part.done ? "" : whole.pop();
    for (const event of whole) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (data.length) yield JSON.parse(data.join("\n"));
    }
    if (part.done) return;
  }
}
