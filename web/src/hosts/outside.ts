// A window of its own, outside Jira, for an operator that the relay's command `page` invited. The cookie of the
// session goes along by itself, and counts only together with what stands in this document.

import type { Boot } from "../boot.ts";
import type { Host } from "../host.ts";
import { fetched } from "./fetched.ts";

export async function outsideHost(boot: Boot, pageToken: string): Promise<Host> {
  const headers = { "X-Page-Token": pageToken };
  return {
    boot,
    outside: true,
    request: (call, signal) => fetched(boot.base, call, headers, signal, "same-origin"),
    mayCall: (origin) => boot.origins.includes(origin),
    openElsewhere: null,
    reload: () => window.location.reload(),
  };
}
