// Calls to the relay by the browser itself, for hosts that let it.

import type { Answer, Call } from "../host.ts";

export async function fetched(
  base: string,
  { method, path, body }: Call,
  headers: Record<string, string>,
  signal: AbortSignal,
  credentials: RequestCredentials = "omit",
): Promise<Answer> {
  const response = await fetch(`${base}/${path}`, {
    method,
    headers: body ? { ...headers, "Content-Type": "application/json" } : headers,
    body: body ? JSON.stringify(body) : null,
    credentials,
    cache: "no-store",
    signal,
  });
  return { status: response.status, text: await response.text() };
}
