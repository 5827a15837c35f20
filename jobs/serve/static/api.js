// The API as its description tells it.

import { ask, byId, h } from "./shared.js";

const told = await ask("/api/openapi.json");
byId("about").textContent = told.info.description;

/** A schema with what it refers to. */
function whole(schema) {
  if (Array.isArray(schema)) return schema.map(whole);
  if (schema === null || typeof schema !== "object") return schema;
  if (schema.$ref) return whole(told.components.schemas[schema.$ref.split("/").at(-1)]);
  const kept = Object.entries(schema).filter(([name]) => name !== "title");
  return Object.fromEntries(kept.map(([name, value]) => [name, whole(value)]));
}

for (const [path, methods] of Object.entries(told.paths)) {
  for (const [method, one] of Object.entries(methods)) {
    const query = (one.parameters ?? []).filter((parameter) => parameter.in === "query").map((parameter) => parameter.name);
    const body = one.requestBody?.content["application/json"]?.schema;
    byId("endpoints").append(
      h("h2", { textContent: `${method.toUpperCase()} ${path}${query.length ? `?${query.join("&")}` : ""}` }),
      h("p", { textContent: one.summary }),
      body ? h("pre", { tabIndex: 0, textContent: JSON.stringify(whole(body), null, 1) }) : "",
    );
  }
}
