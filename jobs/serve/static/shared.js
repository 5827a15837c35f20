// What the parts of the page have in common. Texts of others reach the page as text alone.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; texts are text nodes. */
export function h(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

/** The server's answer; an Error with its reason where it refuses. */
export async function ask(path, method = "GET", body = undefined) {
  const json = body !== undefined && !(body instanceof Blob);
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: json ? { "content-type": "application/json" } : {},
      body: json ? JSON.stringify(body) : body,
    });
  } catch {
    throw new Error("The server does not answer. It may have been ended or be starting again.");
  }
  if (answer.status === 204) return null;
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ?? `the server answered ${answer.status}`);
  return said;
}

let info = null;

/** What the server makes, and its limits. */
export async function about() {
  info ??= await ask("/api");
  return info;
}

export const titleOf = (name) => info?.systems.find((one) => one.name === name)?.title ?? name;

export function notice(text, bad = false) {
  byId("notice").textContent = text;
  byId("notice").classList.toggle("bad", bad);
}

/** What an event starts; whatever goes wrong is told. */
export const telling = (action) => async (...given) => {
  try {
    await action(...given);
  } catch (error) {
    notice(error.message, true);
  }
};
