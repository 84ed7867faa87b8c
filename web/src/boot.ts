// What the relay says first: where its API is, and what holds for this installation.

import { listOf, oneOf, record, type Shape, text } from "./shapes.ts";

const LACKS = ["workspace_search", "repository_search", "create_branch"] as const;
/** What an upstream can't do. */
export type Lack = (typeof LACKS)[number];

const UPSTREAMS = ["connect", "forge", "oauth"] as const;

export interface Boot {
  base: string;
  /** Origins of instances that this document's connect-src lets the page call. */
  origins: string[];
  proxyUrl: string;
  redirectUri: string;
  /** Outside Jira only: proves that a call comes from this document. */
  pageToken?: string;
  upstream: (typeof UPSTREAMS)[number];
  lacks: Lack[];
}

/** Of one that comes by a call, and so has no token of a document. */
export const bootShape: Shape<Boot> = record<Omit<Boot, "pageToken">>({
  base: text,
  origins: listOf(text),
  proxyUrl: text,
  redirectUri: text,
  upstream: oneOf(UPSTREAMS),
  lacks: listOf(oneOf(LACKS)),
});

export function readBoot(root: HTMLElement): Boot {
  return JSON.parse(root.dataset.boot ?? "") as Boot;
}
