// What a test lays over the claims, header or body that a judge would send.

// A name with dots is a path: "app.environment.type". null deletes, because
// JSON has no undefined. Nothing else is derived from what is laid over.
export function overlay(values, overrides = {}) {
  const result = structuredClone(values);
  for (const [path, value] of Object.entries(overrides)) {
    const names = path.split(".");
    const last = names.pop();
    let place = result;
    for (const name of names) place = place[name] ??= {};
    if (value === null) delete place[last];
    else place[last] = value;
  }
  return result;
}
